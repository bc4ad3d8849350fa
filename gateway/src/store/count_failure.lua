-- Counts a failed login.
--
-- KEYS[1]   the client's count
-- ARGV[1]   the window in milliseconds; it begins with the first failure
-- Replies with the failures in the window.

local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count
