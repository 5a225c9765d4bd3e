-- Adds a part of what a batch says of one account. The same as adding.account in usage_file.go.
--
-- KEYS[2]  when the account was last used, Unix seconds
-- KEYS[3]  its latest refusals, by time
-- KEYS[4…] blocks of points, hashes; see usage.go for the fields
-- ARGV     from the 4th: last used ("0" = no request), TTL; the limits of requests and
--          tokens per minute (0 = none known); TTL of refusals, how many to keep, how
--          many follow; pairs of a time and a refusal; TTLs of the blocks, one each;
--          then for each cell: its places in the blocks of minutes, hours and days
--          (key, slot, of each), label, admitted, input tokens, output tokens, how
--          many reasons follow, pairs of a reason and how many it refused

local at = 3
local function arg() at = at + 1; return ARGV[at] end
local function number() return tonumber(arg()) end

local last, last_ttl = number(), arg()
local limit_requests, limit_tokens = number(), number()
if last > 0 then
  last = math.max(last, tonumber(redis.call('GET', KEYS[2]) or 0))
  redis.call('SET', KEYS[2], string.format('%.0f', last), 'EX', last_ttl)
end

local refused_ttl, most = arg(), number()
local refusals = number()
for _ = 1, refusals do
  local score = arg()
  redis.call('ZADD', KEYS[3], score, arg())
end
if refusals > 0 then
  redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -most - 1)
  redis.call('EXPIRE', KEYS[3], refused_ttl)
end

local ttls, fields = {}, {}
for k = 4, #KEYS do ttls[k], fields[k] = arg(), {} end

-- What a field says, read once and written at the end.
local new = {}
local function open(key, field)
  local f = fields[key][field]
  if f then return f end
  f = {}
  local text = redis.call('HGET', KEYS[key], field)
  if text then
    for word in string.gmatch(text, '%S+') do f[#f + 1] = word end
  else
    new[key] = true
  end
  fields[key][field] = f
  return f
end

local function raise(f, i, n) f[i] = math.max(tonumber(f[i] or 0), n) end
local MAX = 4e15 -- quota.MaxUsed, where numbers are still exact
local function increase(f, i, n) f[i] = math.min(tonumber(f[i] or 0) + n, MAX) end

local function refuse(f, reason, n)
  for i = 6, #f, 2 do
    if f[i] == reason then increase(f, i + 1, n) return end
  end
  f[#f + 1] = reason
  f[#f + 1] = n
end

local function limits(f)
  raise(f, 1, 0)
  raise(f, 2, 0)
  f[3] = limit_requests > 0 and limit_requests or f[3] or 0
  f[4] = limit_tokens > 0 and limit_tokens or f[4] or 0
end

while at < #ARGV do
  local places = {}
  for i = 1, 3 do places[i] = {number(), arg()} end
  local label, admitted, input, output = arg(), number(), number(), number()
  local reasons = {}
  for i = 1, number() do reasons[i] = {arg(), number()} end
  local minute, whole
  for _, place in ipairs(places) do
    local f = open(place[1], place[2] .. ' ' .. label)
    local all = open(place[1], place[2])
    increase(f, 1, admitted)
    increase(f, 2, input)
    increase(f, 3, output)
    limits(all)
    if not minute then -- the minute itself: its busiest minute is all it has
      minute, whole = f, all
      f[4], f[5] = f[1], math.min(f[2] + f[3], MAX)
      increase(all, 1, admitted)
      increase(all, 2, input + output)
    else
      raise(f, 4, minute[4])
      raise(f, 5, minute[5])
      raise(all, 1, whole[1])
      raise(all, 2, whole[2])
    end
    for _, r in ipairs(reasons) do refuse(f, r[1], r[2]) end
  end
end

for k = 4, #KEYS do
  local writes = {}
  for field, f in pairs(fields[k]) do
    for i, v in ipairs(f) do
      if type(v) == 'number' then f[i] = string.format('%.0f', v) end
    end
    writes[#writes + 1] = field
    writes[#writes + 1] = table.concat(f, ' ')
  end
  if #writes > 0 then
    redis.call('HSET', KEYS[k], unpack(writes))
    if new[k] then expire(KEYS[k], ttls[k]) end
  end
end
return 1
