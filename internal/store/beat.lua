-- Says that an instance lives, and counts those that do. It needs common.lua before it.
--
-- KEYS[1]  the instances, by when they were last heard of
-- KEYS[2]  when one was last heard of at all: it only grows, unless Redis has lost something
-- ARGV     the instance; how long one may be silent, in ms; 1 = it leaves; how long KEYS[2] is
--          kept, in ms
-- returns  {now in ms, how many live, what KEYS[2] was, 0 = nothing, and is}

begin()
local silent = tonumber(ARGV[2])
if ARGV[3] == '1' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now, ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - silent)
redis.call('PEXPIRE', KEYS[1], 2 * silent)
local heard = tonumber(redis.call('GET', KEYS[2]) or 0)
local hears = math.max(heard, now)
redis.call('SET', KEYS[2], whole(hears), 'PX', ARGV[4])
return {now, redis.call('ZCARD', KEYS[1]), heard, hears}
