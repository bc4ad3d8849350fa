-- Gives one token back to each bucket; a bucket is never fuller than full.
--
-- KEYS[i]   a bucket
-- ARGV[i]   microseconds in which one token comes back
-- Replies with nothing. Times are as in spend.lua.

local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])

for i, key in ipairs(KEYS) do
  local held = tonumber(redis.call('GET', key) or 0) or 0
  local arrival = held - tonumber(ARGV[i])
  if arrival > now then
    redis.call('SET', key, string.format('%.3f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1000)
  elseif held > 0 then
    redis.call('DEL', key)
  end
end
