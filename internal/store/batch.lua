-- Carries out orders and settlements, each in one step and by itself: one that fails
-- changes nothing of the others. The same as Memory.Take and Memory.Settle.
--
-- KEYS     of each in turn: the account's counters, a hash: field = counter, value =
--          "<window start, ms> <used>"; then the request's reservation, but for an order of
--          which nothing is to be kept
-- ARGV     how many plans; of each plan: how many charges, and of each charge: counter,
--          window length in ms ("-1" = calendar month), maximum; then of each in turn
--          order: the number of its plan, from 1; the reservation's secret, and how long to
--          keep it in ms ("" alone = nothing is to be kept); of each charge: the cost (0
--          looks and takes nothing; negative gives back)
--          settlement: "s"; the secret; the share of each maximum, in thousandths, that
--          refunds may give back in a window (0 = no refund, -1 = the charge may only rise);
--          the tokens, input tokens and output tokens used ("-1" = unknown)
-- returns  {now in ms, then of each in turn}
--          order: 1 = admitted, 0 = refused, and what is used of each charge's counter; or
--          2 = it repeats another, and of that: when it was in ms, the secret, what was used
--          settlement: 0 = there is no such reservation, 1 = settled, 2 = it was before
--          one that failed: a text that says why

local REPEAT = 10000 -- ms, quota.RepeatWindow
local SETTLED = 10000 -- ms, settledKept: that a settled reservation is remembered, to know duplicates

local call, tonumber, sub, match, gmatch = redis.call, tonumber, string.sub, string.match, string.gmatch
local KEYS, ARGV = KEYS, ARGV
local reply, replied = {now}, 1

-- The current window of a length, worked out once.
local windows = {}
local function window(length)
  local w = windows[length]
  if not w then
    local start, stop = bounds(tonumber(length), now)
    w = {start = whole(start), prefix = whole(start) .. ' ', stop = stop}
    windows[length] = w
  end
  return w
end

-- A reservation is words: when it was made, its secret, 1 if it is settled, then six for
-- each charge: counter, window length, maximum, window start, what was taken, and what was
-- used after that.
local HEAD, CHARGE = '^(%S+) (%S+) (%d)()', ' (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)'

-- Answers an order that repeats another, of another window though it be, with the answer
-- of the first. Returns false where it repeats none.
local function repeats(plan, used, reservation)
  local kept = call('GET', reservation)
  if not kept then return false end
  local made, secret, _, rest = match(kept, HEAD)
  if now - tonumber(made) >= REPEAT then return false end
  for counter, _, _, _, _, after in gmatch(sub(kept, rest), CHARGE) do
    for i = 1, plan.n do
      if plan.counters[i] == counter then used[i] = tonumber(after) end
    end
  end
  reply[replied + 1], reply[replied + 2], reply[replied + 3] = 2, tonumber(made), secret
  for i = 1, plan.n do reply[replied + 3 + i] = used[i] end
  replied = replied + 3 + plan.n
  return true
end

local function answer(status, plan, used)
  reply[replied + 1] = status
  for i = 1, plan.n do reply[replied + 1 + i] = used[i] end
  replied = replied + 1 + plan.n
end

-- Takes all charges of an order, or none of them. The costs begin after ARGV[at].
local function take(plan, key, reservation, secret, keep, at)
  local n, counters = plan.n, plan.counters
  local values = call('HMGET', key, unpack(counters))
  local used, costs, refused, last = {}, {}, false, 0
  for i = 1, n do
    local w, cost = plan.windows[i], tonumber(ARGV[at + i])
    local u = used_in(values[i], w.prefix)
    if not u then
      u = 0
      if cost ~= 0 and w.stop > last then last = w.stop end
    end
    if cost > 0 and u + cost > plan.maxima[i] then refused = true end
    used[i], costs[i] = u, cost
  end
  if refused then
    if not (reservation and repeats(plan, used, reservation)) then answer(0, plan, used) end
    return
  end

  local after, writes, w, record = {}, {}, 0, reservation and {whole(now), ' ', secret, ' 0'}
  for i = 1, n do
    after[i] = used[i]
    if costs[i] ~= 0 then after[i] = clamp(used[i] + costs[i]) end
    local text = whole(after[i])
    if costs[i] ~= 0 then
      writes[w + 1], writes[w + 2] = counters[i], plan.windows[i].prefix .. text
      w = w + 2
    end
    if reservation then record[i + 4] = plan.heads[i] .. ARGV[at + i] .. ' ' .. text end
  end
  if reservation then
    local text, ttl = table.concat(record), math.max(tonumber(keep), REPEAT)
    if not call('SET', reservation, text, 'PX', ttl, 'NX') then
      if repeats(plan, used, reservation) then return end
      call('SET', reservation, text, 'PX', ttl)
    end
  end
  if w > 0 then write(key, writes, last) end
  answer(1, plan, after)
end

-- What a counter counts, which its name begins with.
local metrics = {}
local function metric(counter)
  if not metrics[counter] then metrics[counter] = match(counter, '^[^/]+') end
  return metrics[counter]
end

-- Corrects what one order took to what was used, once.
local function settle(key, reservation, secret, share, actuals)
  local kept = call('GET', reservation)
  if not kept then return 0 end
  local made, whose, settled, rest = match(kept, HEAD)
  if whose ~= secret then return 0 end
  if settled == '1' then return 2 end

  local charges = sub(kept, rest)
  local counters, currents, changes, n = {}, {}, {}, 0
  local writes, last = {}, 0
  local function set(counter, w, was, used)
    writes[#writes + 1] = counter
    writes[#writes + 1] = w.prefix .. whole(clamp((was or 0) + used))
    if not was and w.stop > last then last = w.stop end
  end
  for counter, length, max, charged, taken in gmatch(charges, CHARGE) do
    local w = window(length)
    taken = tonumber(taken)
    local actual = actuals[metric(counter)]
    if not actual or actual == -1 then actual = taken end
    if share > 0 then
      local refunds = counter .. '!refunded'
      local refunded = used_in(call('HGET', key, refunds), w.prefix)
      max = tonumber(max)
      local back = math.floor(max / 1000) * share + math.floor(max % 1000 * share / 1000) - (refunded or 0)
      back = math.max(math.min(taken, back), 0)
      actual = taken - back
      if back > 0 and w.start == charged then set(refunds, w, refunded, back) end
    elseif share == -1 then
      actual = math.max(actual, taken)
    end
    local change = actual - taken
    if change > 0 or change < 0 and w.start == charged then
      n = n + 1
      counters[n], currents[n], changes[n] = counter, w, change
    end
  end
  if n > 0 then
    local values = call('HMGET', key, unpack(counters))
    for i = 1, n do set(counters[i], currents[i], used_in(values[i], currents[i].prefix), changes[i]) end
  end
  if #writes > 0 then write(key, writes, last) end
  call('SET', reservation, made .. ' ' .. secret .. ' 1' .. charges, 'PX', SETTLED)
  return 1
end

local plans, args = {}, 1
for p = 1, tonumber(ARGV[1]) do
  local plan = {n = tonumber(ARGV[args + 1]), counters = {}, windows = {}, maxima = {}, heads = {}}
  args = args + 1
  for i = 1, plan.n do
    local counter, length, max = ARGV[args + 1], ARGV[args + 2], ARGV[args + 3]
    local w = window(length)
    plan.counters[i], plan.windows[i], plan.maxima[i] = counter, w, tonumber(max)
    plan.heads[i] = ' ' .. counter .. ' ' .. length .. ' ' .. max .. ' ' .. w.prefix
    args = args + 3
  end
  plans[tostring(p)] = plan
end

-- Goes through what is left of KEYS and ARGV.
local keys = 0
local function all()
  while args < #ARGV do
    local key, reservation, at, plan = KEYS[keys + 1], KEYS[keys + 2], args, plans[ARGV[args + 1]]
    if not plan then
      keys, args = keys + 2, args + 6
      local actuals = {tokens = tonumber(ARGV[at + 4]), input_tokens = tonumber(ARGV[at + 5]), output_tokens = tonumber(ARGV[at + 6])}
      local outcome = settle(key, reservation, ARGV[at + 2], tonumber(ARGV[at + 3]), actuals)
      replied = replied + 1
      reply[replied] = outcome
    elseif ARGV[at + 2] == '' then
      keys, args = keys + 1, args + 2 + plan.n
      take(plan, key, nil, nil, nil, at + 2)
    else
      keys, args = keys + 2, args + 3 + plan.n
      take(plan, key, reservation, ARGV[at + 2], ARGV[at + 3], at + 3)
    end
  end
end

repeat
  local done, why = pcall(all)
  if not done then
    if type(why) == 'table' then why = why.err end
    replied = replied + 1
    reply[replied] = string.gsub(why, '^@user_script: %d+: %-?', '') .. ' (in a script)'
  end
until done
return reply
