-- Carries out orders and settlements, each in one step and by itself: one that fails
-- changes nothing of the others. The same as Memory.Take and Memory.Settle.
--
-- KEYS     of each in turn: the account's counters, a hash: field = counter, value =
--          "<window start, ms> <used>"; then the request's reservation, but for an order of
--          which nothing is to be kept
-- ARGV     a text with a byte for each in turn: the number of an order's plan, from 1; 0 =
--          it is a settlement. How many plans; of each plan a text: how long to keep reservations
--          in ms (0 = for repeats only, -1 = nothing is to be kept), ";", and of each charge:
--          counter, window length in ms (-1 = calendar month; below that, it slides: -60000, and
--          -2 = month), maximum, cost (0 looks and takes nothing; negative gives back; "?" = each
--          order has its own), with "," between them and ";" after them. Then of each in turn
--          order: the reservation's secret, if it is kept for a settlement; the costs that are its own
--          settlement: the secret; the share of each maximum, in thousandths, that refunds
--          may give back in a window (0 = no refund, -1 = the charge may only rise, -2 = the
--          order is undone); the tokens, input tokens and output tokens used ("-1" = unknown)
-- returns  {now in ms, then of each in turn; before one, now once more where that is later}
--          order: 1 = admitted, 0 = refused, and what is used of each charge's counter; or
--          2 = it repeats another, and of that: when it was in ms, the secret, what was used;
--          then what was used in the window before by each charge that slides
--          settlement: 0 = there is no such reservation, 1 = settled, 2 = it was before
--          one that failed: a text that says why
--
-- As a function of Redis, what stands outside of functions here is done once, and its variables
-- stay. As a script, it is done for each call.

local REPEAT = 10000 -- ms, quota.RepeatWindow
local SETTLED = '10000' -- ms, settledKept: that a settled reservation is remembered, to know duplicates

local call, tonumber, unpack = redis.call, tonumber, unpack
local byte, find, match, gmatch = string.byte, string.find, string.match, string.gmatch

-- Of a call: its KEYS and ARGV, where in these what comes next begins, its answer and how long
-- that is, and the time as a reservation has it.
local keys, args, key_at, arg_at, reply, replied, made

-- Fields and their values in turn, which are to be written of an account's counters.
local fields = {}
local sliding = make_sliding(fields)

-- What is worked out of texts that are often the same holds while all windows stay the same:
-- windows by length, plans and charges by what is said of them. CACHED is how much there may be.
local CACHED = 10000
local windows, plan_of, charges_of, cached, latest_start, first_stop = {}, {}, {}, 0, 0, math.huge

local function forget_windows_that_ended()
  if now < latest_start or now >= first_stop or cached > CACHED then
    windows, plan_of, charges_of = {}, {}, {}
    cached, latest_start, first_stop = 0, 0, math.huge -- last: whoever is killed before forgets once more
  end
end

-- The current window of a length.
local function window(length)
  local w = windows[length]
  if not w then
    local number = tonumber(length)
    local start, stop = bounds(number, now)
    w = {start = start, stop = stop, prefix = whole(start) .. ' '}
    w.size = #w.prefix
    if number < -1 then sliding.window(w, number) end
    latest_start, first_stop = math.max(latest_start, start), math.min(first_stop, stop)
    windows[length] = w -- last, lest it outlives its end where the function is killed
  end
  return w
end

-- A reservation is a text: when it was made, its secret, 0, or 1 if it is settled; then,
-- with no blank in it, of each charge what is the same for many orders: counter, window
-- length, maximum, what was taken or "?"; then what was taken where that is "?", what was
-- used of each counter after that, and before its window where that slides:
-- 1795901973278 secret 0 requests/minute,60000,10,1;tokens/minute,-60000,1000,?;|350,4,720,81
-- Of those kept for repeats only there are as many as requests in REPEAT. There a digest stands for
-- what is the same, and no secret, for none is asked for: 1795901973278 - 0 #5f3a9c01|4,720
local HEAD, CHARGE, NUMBER = '^(%S+) (%S+) %d ()', '([^,;]+),([^,]+),([^,]+),([^;]+);', '^([^,]+),?()'
local BLANK, UNSETTLED, DIGEST = byte(' 0#', 1, 3)
local NO_SECRET = '-'

-- Where a settlement has what was used of a metric.
local PLACES = {tokens = 3, input_tokens = 4, output_tokens = 5}

-- Reads what a reservation says of its charges from a place on. Returns that, with how many are
-- open: what they took is among the numbers. And returns where the numbers begin.
local function read(kept, from)
  local to = find(kept, '|', from, true)
  local text = sub(kept, from, to)
  local charges = charges_of[text]
  if not charges then
    charges = {n = 0, open = 0}
    for counter, length, max, taken in gmatch(text, CHARGE) do
      charges.n = charges.n + 1
      charges[charges.n] = {counter = counter, place = PLACES[match(counter, '^[^/]+')], current = window(length),
        max = tonumber(max), taken = tonumber(taken)}
      if taken == '?' then charges.open = charges.open + 1 end
      if charges[charges.n].current.before then
        charges.slides = charges.slides or {}
        charges.slides[#charges.slides + 1] = counter
      end
    end
    charges_of[text], cached = charges, cached + 1
  end
  return charges, to + 1
end

-- Answers with what is used of a plan's counters.
local function tell(plan, used)
  local n = plan.n
  for i = 1, n do reply[replied + i] = used[i] end
  replied = replied + n
  if plan.slides then replied = sliding.answer(plan, reply, replied) end
end

-- What is read of a reservation that has another digest.
local NOTHING = {n = 0, open = 0}

-- Answers an order that repeats another, of another window though it be, with the answer
-- of the first. What that says nothing of is as it is now, and so is all where it has another
-- digest. Returns false where it repeats none.
local function repeats(plan, used, reservation)
  local kept = call('GET', reservation)
  if not kept then return false end
  local first, secret, rest = match(kept, HEAD)
  if now - tonumber(first) >= REPEAT then return false end
  local charges, place = NOTHING, rest
  if byte(kept, rest) ~= DIGEST or sub(kept, rest, rest + 8) == plan.digest then charges, place = read(kept, rest) end
  for _ = 1, charges.open do place = find(kept, ',', place, true) + 1 end
  for i = 1, charges.n do
    local number
    number, place = match(kept, NUMBER, place)
    for j = 1, plan.n do
      if plan.counters[j] == charges[i].counter then used[j] = number + 0 end -- nil would end the answer
    end
  end
  if plan.slides and charges.slides then sliding.read(plan, {unpack(charges.slides)}, kept, place) end
  reply[replied + 1], reply[replied + 2], reply[replied + 3] = 2, tonumber(first), secret
  replied = replied + 3
  tell(plan, used)
  return true
end

local function answer(status, plan, used)
  replied = replied + 1
  reply[replied] = status
  tell(plan, used)
end

-- Takes all charges of an order, or none of them. What it has besides its plan begins after
-- args[at].
local used, after, numbers = {}, {}, {}
local function take(plan, key, reservation, at)
  local n, counters, costs, prefixes = plan.n, plan.counters, plan.costs, plan.prefixes
  for i = 1, plan.open do costs[plan.opens[i]] = tonumber(args[at + 1 + i]) end
  local values = call('HMGET', key, unpack(counters))
  local maxima, slides, refused, last = plan.maxima, plan.slides, false, 0
  if slides then maxima = sliding.weigh(plan, values) end
  for i = 1, n do
    local value, cost, size, u = values[i], costs[i], plan.sizes[i], 0
    if value and sub(value, 1, size) == prefixes[i] then
      u = sub(value, size + 1) + 0
    else
      see(start_of(value))
      if cost ~= 0 and plan.stops[i] > last then last = plan.stops[i] end
    end
    if cost > 0 and u + cost > maxima[i] then refused = true end
    used[i] = u
  end
  if refused then
    if not (reservation and repeats(plan, used, reservation)) then answer(0, plan, used) end
    return
  end

  local w, open = 0, plan.open
  for i = 1, n do
    local u, cost = used[i], costs[i]
    if cost ~= 0 then
      u = clamp(u + cost)
      fields[w + 1], fields[w + 2] = counters[i], prefixes[i] .. format(WHOLE, u)
      w = w + 2
    end
    after[i] = u
    if reservation then numbers[open + i] = u end
  end
  local all = open + n
  if slides then
    w, last = sliding.move(plan, w, last)
    for k = 1, #slides do numbers[all + k] = sliding.before[k] end
    all = all + #slides
  end
  if reservation then
    for i = 1, open do numbers[i] = costs[plan.opens[i]] end
    local text = format(plan.kept, made, plan.secret or args[at + 1], unpack(numbers, 1, all))
    if not call('SET', reservation, text, 'PX', plan.keep, 'NX') then
      if repeats(plan, used, reservation) then return end
      call('SET', reservation, text, 'PX', plan.keep)
    end
  end
  if w > 0 then call('HSET', key, unpack(fields, 1, w)) end
  if last > 0 then keep_until(key, last) end
  answer(1, plan, after)
end

-- What a settlement changes: fields to write, and the end of the longest of their windows.
local w, last
local function set(counter, current, was, u)
  fields[w + 1], fields[w + 2] = counter, current.prefix .. whole(clamp((was or 0) + u))
  w = w + 2
  local stop = current.keep or current.stop
  if not was and stop > last then last = stop end
end

-- Corrects what one order took to what was used, once, or undoes it.
local counters, changed, changes = {}, {}, {}
local function settle(key, reservation, at)
  local kept = call('GET', reservation)
  if not kept then return 0 end
  local secret, from = args[at + 1], find(kept, ' ', 1, true)
  if secret == NO_SECRET then return 0 end
  local rest = from + #secret + 4
  if sub(kept, from + 1, rest - 4) ~= secret or byte(kept, rest - 3) ~= BLANK then return 0 end
  if byte(kept, rest - 2) ~= UNSETTLED then return 2 end
  if byte(kept, rest) == DIGEST then return 0 end

  local share, first, n = tonumber(args[at + 2]), tonumber(sub(kept, 1, from - 1)), 0
  see(first)
  local charges, place = read(kept, rest)
  w, last = 0, 0
  for i = 1, charges.n do
    local charge = charges[i]
    local current, taken = charge.current, charge.taken
    local still = current.start <= first and first < current.stop -- the window that was charged
    if not taken then
      taken, place = match(kept, NUMBER, place)
      taken = tonumber(taken)
    end
    local actual = charge.place and tonumber(args[at + charge.place]) or -1
    if actual == -1 then actual = taken end
    if share > 0 then
      local max, refunds = charge.max, charge.counter .. '!refunded'
      local refunded = used_in(call('HGET', key, refunds), current.prefix)
      local back = math.floor(max / 1000) * share + math.floor(max % 1000 * share / 1000) - (refunded or 0)
      back = math.max(math.min(taken, back), 0)
      actual = taken - back
      if back > 0 and still then set(refunds, current, refunded, back) end
    elseif share == -1 and actual < taken then
      actual = taken
    elseif share == -2 then
      actual = 0
    end
    local change = actual - taken
    if change > 0 or change < 0 and still then
      n = n + 1
      counters[n], changed[n], changes[n] = charge.counter, current, change
      if current.before then w, last = sliding.add(key, charge.counter, current, 0, w, last) end
    elseif change < 0 and current.before and share <= 0 and current.last <= first and first < current.start then
      w, last = sliding.add(key, charge.counter, current, change, w, last)
    end
  end
  if n > 0 then
    local values = call('HMGET', key, unpack(counters, 1, n))
    for i = 1, n do set(counters[i], changed[i], used_in(values[i], changed[i].prefix), changes[i]) end
  end
  if w > 0 then call('HSET', key, unpack(fields, 1, w)) end
  if last > 0 then keep_until(key, last) end
  if share == -2 then
    call('PEXPIRE', reservation, 0) -- at once, and a user who may not DEL has the right to that
  else
    call('SET', reservation, sub(kept, 1, rest - 3) .. '1' .. sub(kept, rest - 1), 'PX', SETTLED)
  end
  return 1
end

-- What read returns of a reservation that has a plan's digest: no more than repeats needs.
local function digested(plan)
  local charges = {n = plan.n, open = plan.open}
  for i = 1, plan.n do charges[i] = {counter = plan.counters[i]} end
  if plan.slides then
    charges.slides = {}
    for k, i in ipairs(plan.slides) do charges.slides[k] = plan.counters[i] end
  end
  return charges
end

-- Works out the charges of a plan, in columns, for what is now. Those are open of which each order
-- has its own cost.
local function new_plan(text)
  local keep, at = match(text, '^(%-?%d+);()')
  local said, digest = sub(text, at), ''
  keep = tonumber(keep)
  local plan = {n = 0, keep = keep >= 0 and whole(math.max(keep, REPEAT)), open = 0,
    counters = {}, prefixes = {}, sizes = {}, stops = {}, maxima = {}, costs = {}, opens = {}}
  for counter, length, max, cost in gmatch(said, CHARGE) do
    local i, w = plan.n + 1, window(length)
    plan.n, plan.counters[i], plan.maxima[i], plan.costs[i] = i, counter, tonumber(max), tonumber(cost)
    plan.prefixes[i], plan.sizes[i], plan.stops[i] = w.prefix, w.size, w.stop
    if w.before then
      plan.slides, plan.windows = plan.slides or {}, plan.windows or {}
      plan.slides[#plan.slides + 1], plan.windows[i], plan.stops[i] = i, w, w.keep
    end
    if cost == '?' then
      plan.open = plan.open + 1
      plan.opens[plan.open] = i
    end
    digest = digest .. counter .. ',' .. length .. (cost == '?' and '?;' or ';')
  end
  if plan.slides then
    for k, i in ipairs(plan.slides) do plan.counters[plan.n + k] = plan.counters[i] .. sliding.BEFORE end
  end
  if keep == 0 then
    said = '#' .. sub(redis.sha1hex(digest), 1, 8)
    plan.secret, plan.digest = NO_SECRET, said
    charges_of[said .. '|'] = digested(plan)
  end
  local wholes = string.rep(',' .. WHOLE, plan.open + #plan.counters)
  plan.kept = '%s%s 0 ' .. string.gsub(said, '%%', '%%%%') .. '|' .. sub(wholes, 2)
  plan_of[text], cached = plan, cached + 1
  return plan
end

-- Reads the plans, for what is now.
local plans = {}
local function read_plans()
  forget_windows_that_ended()
  made, arg_at = whole(now) .. ' ', 2
  for p = 1, tonumber(args[2]) do
    arg_at = arg_at + 1
    plans[p] = plan_of[args[arg_at]] or new_plan(args[arg_at])
  end
end

-- What is to be carried out, and how much of that is.
local kinds, carried

-- Goes through what is left of keys and args.
local first_key, first_arg
local function carry_out()
  while carried < #kinds do
    carried, first_key, first_arg = carried + 1, key_at, arg_at
    local plan, key, at = plans[kinds[carried]], keys[key_at + 1], arg_at
    if not plan then
      local reservation = keys[key_at + 2]
      key_at, arg_at = key_at + 2, arg_at + 5
      local outcome = settle(key, reservation, at)
      replied = replied + 1
      reply[replied] = outcome
    else
      local reservation = plan.keep and keys[key_at + 2]
      if plan.keep and not plan.secret then arg_at = arg_at + 1 else at = at - 1 end
      key_at, arg_at = key_at + (reservation and 2 or 1), arg_at + plan.open
      take(plan, key, reservation, at)
    end
  end
end

local function run(call_keys, call_args)
  begin()
  keys, args, reply, replied = call_keys, call_args, {now}, 1
  kinds, carried, key_at = {byte(args[1], 1, -1)}, 0, 0
  read_plans()
  while true do
    local done, why = pcall(carry_out)
    if done then return reply end
    if type(why) == 'table' then why = why.err end
    local later = match(why, LATER .. '(%d+)$')
    replied = replied + 1
    if later then -- it has written nothing yet
      now = tonumber(later)
      reply[replied] = now
      read_plans()
      carried, key_at, arg_at = carried - 1, first_key, first_arg
    else
      reply[replied] = string.gsub(why, '^@user_%a+: ?%d+: %-?', '') .. ' (in a script)'
    end
  end
end
