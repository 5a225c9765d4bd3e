-- Adds a part of what a batch says of the ranks of accounts.
--
-- KEYS[2…] sorted sets of accounts
-- ARGV     from the 4th: how many members a set may have, and how many it has after it
--          had more; TTLs of the sets, one each; then four for each account: key, "+"
--          to add or ">" to raise, the member, the number

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
  expire(KEYS[k], ARGV[4 + k])
end
return 1
