"""How the site's mail is doing: the figures of the health page, and the guard over them."""
