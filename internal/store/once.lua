-- Adds each part of a batch once, and in order. It is put before the scripts that add
-- usage.
--
-- KEYS[1]  what the instance has added last: "<batch> <part>"
-- ARGV     the batch; the number of the part, from 1; how long to remember it, in s
-- returns  0 = it was added before, else 1

local batch, part = ARGV[1], tonumber(ARGV[2])
local known, done = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%d+)$')
done = known == batch and tonumber(done) or 0
if part <= done then return 0 end
if part > done + 1 then return redis.error_reply('ERR a part of usage is before its turn') end
redis.call('SET', KEYS[1], batch .. ' ' .. part, 'EX', ARGV[3])

-- Every key gets a TTL when it is new; it ends with the time that it is about.
local function expire(key, seconds)
  if redis.call('TTL', key) < 0 then redis.call('EXPIRE', key, seconds) end
end
