-- Forgets a change that does not matter any more, unless it has been changed since it was read.
--
-- KEYS[1]   the changes of a topic, see put.lua
-- ARGV[1]   the key
-- ARGV[2]   what the field held when it was read
-- Replies with nothing.

if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
