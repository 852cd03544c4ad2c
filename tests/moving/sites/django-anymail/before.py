from news import send_news

assert send_news("old@example.org") == 1
