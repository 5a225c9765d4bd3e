-- Keeps what an instance says of itself, or returns what all have said lately: by the clock
-- of Redis, for theirs may be wrong. It needs common.lua before it.
--
-- KEYS[1]  what was said, by when, in ms
-- ARGV     how long it is kept, in ms; of an instance that says something besides: that, and
--          what it said before, or ""
-- returns  what was said, or how much of that there is

begin()
local old = now - ARGV[1]
if not ARGV[2] then return redis.call('ZRANGE', KEYS[1], '(' .. old, '+inf', 'BYSCORE') end
if ARGV[3] ~= '' then redis.call('ZREM', KEYS[1], ARGV[3]) end
redis.call('ZADD', KEYS[1], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', old)
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[1])
return redis.call('ZCARD', KEYS[1])
