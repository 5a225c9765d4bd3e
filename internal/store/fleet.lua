-- Adds a part of what a batch says of the ranks of accounts, once, and parts in order.
--
-- KEYS[1]  what the instance has added last: "<batch> <part>"
-- KEYS[2…] sorted sets of accounts
-- ARGV     the batch; the number of the part, from 1; how long to remember it, in s; how
--          many members a set may have, and how many it has after it had more; TTLs of the
--          sets, one each; then four for each account: key, "+" to add or ">" to raise,
--          the member, the number
-- returns  0 = it was added before, else 1

local batch, part = ARGV[1], tonumber(ARGV[2])
local known, done = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%d+)$')
done = known == batch and tonumber(done) or 0
if part <= done then return 0 end
if part > done + 1 then return redis.error_reply('ERR a part of usage is before its turn') end
redis.call('SET', KEYS[1], batch .. ' ' .. part, 'EX', ARGV[3])

local most, least = tonumber(ARGV[4]), tonumber(ARGV[5])
local at = 5 + #KEYS - 1
for i = at + 1, #ARGV, 4 do
  local key = KEYS[tonumber(ARGV[i])]
  if ARGV[i + 1] == '+' then
    redis.call('ZINCRBY', key, ARGV[i + 3], ARGV[i + 2])
  else
    redis.call('ZADD', key, 'GT', ARGV[i + 3], ARGV[i + 2])
  end
end
for k = 2, #KEYS do
  if redis.call('ZCARD', KEYS[k]) > most then redis.call('ZREMRANGEBYRANK', KEYS[k], 0, -least - 1) end
  if redis.call('TTL', KEYS[k]) < 0 then redis.call('EXPIRE', KEYS[k], ARGV[4 + k]) end -- it ends with its time
end
return 1
