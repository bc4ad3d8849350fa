-- Makes a change known to all replicas, unless one of the same key is known that is as new.
--
-- KEYS[1]   the changes of a topic, a hash from key to change
-- ARGV[1]   the key
-- ARGV[2]   the change, as JSON
-- ARGV[3]   when it was made, nanoseconds since the epoch, as twenty digits
-- ARGV[4]   the channel that replicas listen to
-- Replies with an empty text when it was news, else with the twenty digits of the one that is known: a change that is
-- made, and not only passed on, is then made again with a later time.
--
-- Nanoseconds do not fit a double: a field holds the twenty digits before the JSON, and digits compare as text.

local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and string.sub(known, 1, 20) >= ARGV[3] then return string.sub(known, 1, 20) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. ARGV[2])
redis.call('PUBLISH', ARGV[4], ARGV[2])
return ''
