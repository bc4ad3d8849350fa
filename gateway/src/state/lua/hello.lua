-- Says that a replica is there, counts those that are, and agrees with them when to return after an outage.
--
-- KEYS[1]   the replicas, a hash: each one's name and when it was last heard of; `return` is when they go on together
-- ARGV[1]   this replica
-- ARGV[2]   for how long a replica is believed to be there
-- ARGV[3]   for how long this replica was away; -1 when it was not
-- ARGV[4]   the replicas that it knew before
-- Replies with the replicas that are there, how long to wait before going on (-1 while others are still missing), and
-- Redis's time.
--
-- Times are milliseconds. Replicas that returned one by one would spend from the bucket and from their shares of it at
-- the same time; so they wait until all of them are back, and then go on in the same moment.

local AGREED_FOR, HEAD_START = 2000, 150
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local away = tonumber(ARGV[3])

redis.call('HSET', KEYS[1], ARGV[1], now)
local seen, back, together = 0, 0, nil
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local at = tonumber(fields[i + 1])
  if fields[i] == 'return' then
    together = at
  elseif at < now - tonumber(ARGV[2]) or at > now + tonumber(ARGV[2]) then
    redis.call('HDEL', KEYS[1], fields[i]) -- gone, or heard of before Redis's clock was set back: who is there says so again
  else
    seen = seen + 1
    if at >= now - away then back = back + 1 end
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])

if away < 0 then return { seen, 0, now } end
if together and (together < now - AGREED_FOR or together > now + AGREED_FOR) then together = nil end
if not together and back >= tonumber(ARGV[4]) then
  together = now + HEAD_START
  redis.call('HSET', KEYS[1], 'return', together)
end
if not together then return { seen, -1, now } end
return { seen, math.max(0, together - now), now }
