-- Takes one token from each bucket, or from none when one that enforces is empty (GCRA, on Redis's clock).
--
-- KEYS[i]          a bucket; holds its theoretical arrival time
-- ARGV[3i-2]       microseconds in which one token comes back
-- ARGV[3i-1]       burst
-- ARGV[3i]         1 when the limit refuses, 0 when it only counts (shadow)
--
-- Replies with two integers a bucket: 1 when it had a token, else 0; and its debt after this call, in microseconds.
--
-- Times are microseconds since 2025, so that a double keeps them to a hundredth of one. A rounding error may let a
-- request through 0.05 microseconds early; it does not add up.

local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local moved, held, conforms, refused = {}, {}, {}, false

for i, key in ipairs(KEYS) do
  local interval, burst, enforce = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), ARGV[3 * i] == '1'
  held[i] = math.max(tonumber(redis.call('GET', key) or 0) or 0, now)
  moved[i] = held[i] + interval
  conforms[i] = moved[i] - now <= interval * burst + 0.05
  if enforce and not conforms[i] then refused = true end
end

local reply = {}
for i, key in ipairs(KEYS) do
  local arrival = held[i]
  if not refused and conforms[i] then
    arrival = moved[i]
    redis.call('SET', key, string.format('%.3f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1000)
  end
  reply[2 * i - 1] = conforms[i] and 1 or 0
  reply[2 * i] = math.ceil(arrival - now)
end
return reply
