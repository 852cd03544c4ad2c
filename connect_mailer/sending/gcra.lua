-- The shared limiter as one atomic step in Redis. `limiter.py` says what the rules are and why,
-- and does the same for the database; the tests hold the two together.
--
-- KEYS[1]  the bucket: a hash of arrival_us, slowdown, slowdown_us
-- ARGV     operation ('reserve', 'give_back', 'put_off', 'slow_down'), interval_ns,
--          what the client knows: seen_us, expected_us, largest,
--          then the costs of the next rows, or the tokens that come back and when
--          the slots of their reservation end (ends_us), or how late a call was (late_us)
-- Returns  granted, wait_us, interval_ns in force, arrival_us, now_us
--
-- Whole numbers only. Lua's doubles are exact to 2^53, and microseconds since 1970 stay below
-- that until the year 2255.

local AHEAD_US = 100000
local JITTER_US = 50000
local SKEW_US = 2000000
local PAUSE_US = 250000
local MAX_COST = 50
local MAX_SLOWDOWN = 5
local STEP_US = 1000000
local RECOVERY_US = 10000000
local EXPIRY_SECONDS = 86400

local operation = ARGV[1]
local interval_ns = tonumber(ARGV[2])
local seen_us = tonumber(ARGV[3])
local expected_us = tonumber(ARGV[4])
local largest = tonumber(ARGV[5])

local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])

local function width_us(tokens)
  return math.ceil(tokens * interval_ns / 1000)
end

-- What is stored, mistrusted.
local stored = redis.call('HMGET', KEYS[1], 'arrival_us', 'slowdown', 'slowdown_us')
local arrival_us = tonumber(stored[1] or 0)
local slowdown = tonumber(stored[2] or 0)
local slowdown_us = math.min(tonumber(stored[3] or 0), now_us)
local level = math.max(slowdown - math.floor((now_us - slowdown_us) / RECOVERY_US), 0)
if operation == 'reserve' then
  interval_ns = interval_ns * 2 ^ level
end

local drift_us = 0
if expected_us > 0 then
  drift_us = now_us - expected_us
end
if arrival_us == 0 or math.abs(drift_us) > SKEW_US then
  arrival_us = math.max(arrival_us, now_us + AHEAD_US + width_us(largest))
end
if seen_us > 0 then
  if drift_us > JITTER_US then
    seen_us = seen_us + drift_us
  end
  arrival_us = math.max(arrival_us, seen_us)
end

local granted, wait_us = 0, 0

if operation == 'reserve' then
  arrival_us = math.min(arrival_us, now_us + AHEAD_US + PAUSE_US + width_us(MAX_COST))
  local start_us = math.max(arrival_us, now_us)
  arrival_us = start_us
  for index = 6, #ARGV do
    if arrival_us > now_us + AHEAD_US then
      break
    end
    granted = granted + tonumber(ARGV[index])
    arrival_us = start_us + width_us(granted)
  end
  wait_us = start_us - now_us
  if granted == 0 then
    wait_us = wait_us - AHEAD_US
  end
elseif operation == 'give_back' then
  -- A slot that has passed is gone: only what lies ahead comes back.
  local back_us = math.floor(tonumber(ARGV[6]) * interval_ns / 1000)
  back_us = math.min(back_us, math.max(tonumber(ARGV[7]) - now_us, 0))
  if arrival_us > now_us then
    arrival_us = math.max(arrival_us - back_us, now_us)
  end
elseif operation == 'put_off' then
  arrival_us = arrival_us + tonumber(ARGV[6])
elseif now_us - slowdown_us >= STEP_US then
  slowdown = math.min(level + 1, MAX_SLOWDOWN)
  slowdown_us = now_us
  arrival_us = math.max(arrival_us, now_us + PAUSE_US)
end

redis.call('HSET', KEYS[1],
  'arrival_us', string.format('%.0f', arrival_us),
  'slowdown', string.format('%.0f', slowdown),
  'slowdown_us', string.format('%.0f', slowdown_us))
redis.call('EXPIRE', KEYS[1], EXPIRY_SECONDS)
return {granted, wait_us, interval_ns, arrival_us, now_us}
