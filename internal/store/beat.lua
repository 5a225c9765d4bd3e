-- Says that an instance lives, and counts those that do. It needs common.lua before it.
--
-- KEYS[1]  the instances, by when they were last heard of
-- ARGV     the instance; how long one may be silent, in ms; 1 = it leaves
-- returns  {now in ms, how many live}

local silent = tonumber(ARGV[2])
if ARGV[3] == '1' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now, ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - silent)
redis.call('PEXPIRE', KEYS[1], 2 * silent)
return {now, redis.call('ZCARD', KEYS[1])}
