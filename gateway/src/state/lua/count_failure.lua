-- Counts a failed login.
--
-- KEYS[1]   the client's failures, a hash: `count`, `began`, `offences`
-- ARGV[1]   the window in milliseconds; it begins with the first failure
-- ARGV[2]   the failures that make a ban
-- ARGV[3]   for how long offences are remembered, in milliseconds
-- Replies with the failures in the window, and how often their number made a ban.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local began = tonumber(redis.call('HGET', KEYS[1], 'began') or 0)
if now - began >= tonumber(ARGV[1]) or began > now then -- the latter: Redis's clock was set back
  redis.call('HSET', KEYS[1], 'began', now, 'count', 0)
end
local count = redis.call('HINCRBY', KEYS[1], 'count', 1)
if count == tonumber(ARGV[2]) then redis.call('HINCRBY', KEYS[1], 'offences', 1) end
local offences = tonumber(redis.call('HGET', KEYS[1], 'offences') or 0)
redis.call('PEXPIRE', KEYS[1], offences > 0 and ARGV[3] or ARGV[1])
return { count, offences }
