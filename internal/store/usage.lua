-- Adds a part of what a batch says of each of some accounts, each part once, and those of
-- one account in order. The same as adding.account in usage_file.go.
--
-- KEYS     of each account in turn: what the instance has added last of it, "<batch>
--          <part>"; when it was last used, Unix seconds; its latest refusals, by time; the
--          blocks of its plan, hashes; see usage.go for the fields
-- ARGV     the batch; how long to remember it, in s; TTL of when accounts were last used;
--          TTL of refusals, how many to keep; how many plans; of each plan: how many
--          blocks, and of each: its TTL, how many fields of it are read, their names; how
--          many cells, and of each the numbers, among all fields of the plan, of six: in
--          the blocks of minutes, hours and days, of its label and of all labels;
--          then of each account in turn: its plan, from 1; how many ARGV follow; the number
--          of the part, from 1; last used ("0" = no request); the limits of requests and
--          tokens per minute (0 = none known); how many refusals, pairs of a time and a
--          refusal; of each cell: admitted, input tokens, output tokens, how many reasons,
--          pairs of a reason and how many it refused

local call, tonumber, match, gmatch, sub, format = redis.call, tonumber, string.match, string.gmatch, string.sub, string.format
local KEYS, ARGV = KEYS, ARGV
local MAX = 4e15 -- quota.MaxUsed, where numbers are still exact
-- With %d, a third of the price, where a C long has 64 bits.
local WHOLE = format('%d', MAX) == '4000000000000000' and '%d' or '%.0f'
local FOUR = WHOLE .. ' ' .. WHOLE .. ' ' .. WHOLE .. ' ' .. WHOLE
local FIVE = FOUR .. ' ' .. WHOLE

local batch, batch_ttl, last_ttl, refused_ttl, most = ARGV[1] .. ' ', ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local at = 5
local function arg() at = at + 1; return ARGV[at] end
local function number() at = at + 1; return tonumber(ARGV[at]) end

-- Notes that a part is added. Returns how many were before.
local function once(key, part)
  if part == 1 then
    local before = call('SET', key, batch .. '1', 'EX', batch_ttl, 'GET')
    if not before or sub(before, 1, #batch) ~= batch then return 0 end
    call('SET', key, before, 'EX', batch_ttl)
    return tonumber(sub(before, #batch + 1))
  end
  local before = call('GET', key)
  local done = before and sub(before, 1, #batch) == batch and tonumber(sub(before, #batch + 1)) or 0
  if part == done + 1 then call('SET', key, batch .. part, 'EX', batch_ttl) end
  return done
end

local function used(key, last)
  local before = call('SET', key, format(WHOLE, last), 'EX', last_ttl, 'GET')
  if before and tonumber(before) > last then call('SET', key, before, 'EX', last_ttl) end
end

local function refuse(key, refusals)
  for _ = 1, refusals do
    local score = arg()
    call('ZADD', key, score, arg())
  end
  call('ZREMRANGEBYRANK', key, 0, -most - 1)
  call('EXPIRE', key, refused_ttl)
end

local function plus(a, b)
  local n = a + b
  return n < MAX and n or MAX
end

-- A sum is what a field of one label says: five numbers, and pairs of a reason and how
-- many it refused. A total is what one of all labels says: four numbers. Both are read
-- into tables that the accounts of a plan share: new ones would cost more than the rest.
local function read_sum(s, text)
  for i = #s, 6, -1 do s[i] = nil end
  if not text then
    s[1], s[2], s[3], s[4], s[5] = 0, 0, 0, 0, 0
    return
  end
  local admitted, input, output, requests, tokens, rest = match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+)()')
  s[1], s[2], s[3], s[4], s[5] = tonumber(admitted), tonumber(input), tonumber(output), tonumber(requests), tonumber(tokens)
  if rest <= #text then
    for reason, n in gmatch(sub(text, rest), '(%S+) (%d+)') do
      s[#s + 1] = reason
      s[#s + 1] = tonumber(n)
    end
  end
end

local function sum_text(s)
  local text = format(FIVE, s[1], s[2], s[3], s[4], s[5])
  for i = 6, #s, 2 do text = text .. ' ' .. s[i] .. ' ' .. format(WHOLE, s[i + 1]) end
  return text
end

local function read_total(t, text)
  if not text then
    t[1], t[2], t[3], t[4] = 0, 0, 0, 0
    return
  end
  local requests, tokens, limit_requests, limit_tokens = match(text, '^(%d+) (%d+) (%d+) (%d+)')
  t[1], t[2], t[3], t[4] = tonumber(requests), tonumber(tokens), tonumber(limit_requests), tonumber(limit_tokens)
end

-- Adds to how many a reason has refused, by sum.
local function add_refused(s, reason, n)
  local i = 6
  while s[i] and s[i] ~= reason do i = i + 2 end
  s[i], s[i + 1] = reason, plus(s[i + 1] or 0, n)
end

-- Adds cells to the fields of a plan.
local function add_cells(plan, limit_requests, limit_tokens)
  local fields, cells = plan.fields, plan.cells
  for c = 1, #cells do
    local places = cells[c]
    local admitted, input, output, last = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), at + 4
    last = last + 2 * tonumber(ARGV[last])
    local minute, whole
    for i = 1, 5, 2 do
      local s, t = fields[places[i]], fields[places[i + 1]]
      s[1], s[2], s[3] = plus(s[1], admitted), plus(s[2], input), plus(s[3], output)
      if i == 1 then -- the minute itself: its busiest minute is all it has
        minute, whole = s, t
        s[4], s[5] = s[1], plus(s[2], s[3])
        t[1], t[2] = plus(t[1], admitted), plus(t[2], input + output)
      else
        if s[4] < minute[4] then s[4] = minute[4] end
        if s[5] < minute[5] then s[5] = minute[5] end
        if t[1] < whole[1] then t[1] = whole[1] end
        if t[2] < whole[2] then t[2] = whole[2] end
      end
      if limit_requests > 0 then t[3] = limit_requests end
      if limit_tokens > 0 then t[4] = limit_tokens end
      for r = at + 5, last, 2 do add_refused(s, ARGV[r], tonumber(ARGV[r + 1])) end
    end
    at = last
  end
end

-- Every key gets a TTL when it is new; it ends with the time that it is about.
local function expire(key, seconds)
  if call('TTL', key) < 0 then call('EXPIRE', key, seconds) end
end

local function add(plan, key)
  local last, limit_requests, limit_tokens, refusals = number(), number(), number(), number()
  if last > 0 then used(KEYS[key + 2], last) end
  if refusals > 0 then refuse(KEYS[key + 3], refusals) end
  local blocks, fields, texts, writes = plan.blocks, plan.fields, plan.texts, plan.writes
  for b = 1, #blocks do
    local names, first = blocks[b].names, blocks[b].first
    local values = call('HMGET', KEYS[key + 3 + b], unpack(names))
    for i = 1, #names do
      local field = fields[first + i]
      texts[first + i] = values[i]
      if field[5] then read_sum(field, values[i]) else read_total(field, values[i]) end
    end
  end
  add_cells(plan, limit_requests, limit_tokens)
  for b = 1, #blocks do
    local names, first, new, w = blocks[b].names, blocks[b].first, false, 0
    for i = 1, #names do
      local field, before = fields[first + i], texts[first + i]
      local text = field[5] and sum_text(field) or format(FOUR, field[1], field[2], field[3], field[4])
      if text ~= before then
        writes[w + 1], writes[w + 2] = names[i], text
        w = w + 2
      end
      new = new or not before
    end
    if w > 0 then call('HSET', KEYS[key + 3 + b], unpack(writes, 1, w)) end
    if new then expire(KEYS[key + 3 + b], blocks[b].ttl) end
  end
end

local plans = {}
for p = 1, number() do
  local plan, fields = {blocks = {}, cells = {}, fields = {}, texts = {}, writes = {}}, 0
  for b = 1, number() do
    local ttl, names = arg(), {}
    for i = 1, number() do names[i] = arg() end
    plan.blocks[b] = {ttl = ttl, names = names, first = fields}
    fields = fields + #names
  end
  for c = 1, number() do
    local places = {number(), number(), number(), number(), number(), number()}
    for i = 1, 5, 2 do
      plan.fields[places[i]] = plan.fields[places[i]] or {0, 0, 0, 0, 0}
      plan.fields[places[i + 1]] = plan.fields[places[i + 1]] or {0, 0, 0, 0}
    end
    plan.cells[c] = places
  end
  plans[p] = plan
end

local key = 0
while at < #ARGV do
  local plan, length = plans[number()], number()
  local after, part = at + length, number()
  local done = once(KEYS[key + 1], part)
  if part > done + 1 then return redis.error_reply('ERR a part of usage is before its turn') end
  if part > done then add(plan, key) end
  key, at = key + 3 + #plan.blocks, after
end
return 1
