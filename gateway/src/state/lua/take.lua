-- Hands out tokens of one bucket to one replica (GCRA with leases, on Redis's clock).
--
-- KEYS[1]   the bucket, a hash: `arrival` is when it is full again, `interval` the ARGV[1] that this was counted with,
--           `seen` when it last answered, and each replica's field is `TOKENS ENDS`, what it was handed last and when
--           that is worth nothing any more
-- ARGV[1]   microseconds in which one token comes back
-- ARGV[2]   burst
-- ARGV[3]   tokens for requests that wait
-- ARGV[4]   tokens to spend later
-- ARGV[5]   tokens of the last lease that were not spent
-- ARGV[6]   how far the bucket is from full as far as this replica knows, for a Redis that forgot it
-- ARGV[7]   1 when Redis was away since the replica last heard of the bucket, else 0
-- ARGV[8]   the replica
-- ARGV[9]   how long a lease lasts
-- ARGV[10]  the most tokens on lease to all replicas together; 0: the bucket is exact
--
-- Replies with the tokens handed out, and how far the bucket is from full after that.
--
-- Times are microseconds, and moments count from 2025, so that a double keeps them to a hundredth of one; the rounding
-- lets a request through 0.05 microseconds early at most, and does not add up. The arithmetic is that of
-- policy/src/lease.rs, where it is explained.

local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local need, ahead = tonumber(ARGV[3]), tonumber(ARGV[4])
local returned = tonumber(ARGV[5])
local replica, lasts, most = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])

local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])

local stored, leases = {}, {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name == 'arrival' or name == 'interval' or name == 'seen' then
    stored[name] = tonumber(value)
  else
    local tokens, ends = string.match(value, '^(%d+) ([%d.]+)$')
    leases[name] = { tonumber(tokens), tonumber(ends) }
  end
end

-- Redis's clock was set back: what is known moves with it, so that nobody waits for the time that was taken back.
local back = math.max(0, (stored.seen or now) - now)
local out, others, last = 0, 0, 0
for name, lease in pairs(leases) do
  local tokens, ends = lease[1], lease[2] - back
  out = out + tokens
  last = math.max(last, ends)
  if name ~= replica then
    if ends <= now then
      redis.call('HDEL', KEYS[1], name)
    else
      others = others + tokens
      if back > 0 then redis.call('HSET', KEYS[1], name, string.format('%d %.3f', tokens, ends)) end
    end
  end
end

-- Leases of a larger bucket, before the rule was changed, are more than this one has.
out, others = math.min(out, burst), math.min(others, burst)
local known = now + math.min(tonumber(ARGV[6]), burst * interval)
local arrival = known
if stored.arrival then
  -- Counted with another rate, it lacks as many tokens as it did, and never more than it has room for.
  local debt = math.max(0, stored.arrival - back - now)
  if stored.interval and stored.interval ~= interval then debt = debt / stored.interval * interval end
  arrival = now + math.min(debt, burst * interval)
end
if ARGV[7] == '1' then arrival = math.max(arrival, known) end
if out > 0 then arrival = math.max(arrival, math.min(last, now) + out * interval) end
arrival = math.max(arrival - returned * interval, now + others * interval)

local free = math.max(0, math.floor((now + burst * interval - arrival + 0.05) / interval))
need = math.min(need, free)
ahead = math.max(0, math.min(ahead, free - need, most - others))
arrival = arrival + (need + ahead) * interval

redis.call('HSET', KEYS[1], 'arrival', string.format('%.3f', arrival), 'interval', ARGV[1], 'seen', string.format('%.0f', now))
local keep = arrival - now
if others > 0 then keep = math.max(keep, lasts + others * interval) end
if most > 0 and need + ahead > 0 then
  redis.call('HSET', KEYS[1], replica, string.format('%d %.3f', need + ahead, now + lasts))
  keep = math.max(keep, lasts + (others + need + ahead) * interval)
else
  redis.call('HDEL', KEYS[1], replica)
end
redis.call('PEXPIRE', KEYS[1], math.ceil(keep / 1000) + 1000)
return { need + ahead, math.ceil(math.max(0, arrival - now)) }
