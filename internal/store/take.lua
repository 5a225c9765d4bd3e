-- Takes all charges of one order, or none of them. The same as Memory.Take.
--
-- KEYS[1]  the account's counters, a hash: field = counter, value = "<window start, ms> <used>"
-- KEYS[2]  the order's reservation; left out where nothing is to be kept
-- ARGV     the reservation's secret and how long to keep it in ms, then four for
--          each charge: counter, window length in ms ("-1" = calendar month),
--          maximum, cost (0 looks and takes nothing; negative gives back)
-- returns  {now in ms, 1 = admitted or 0, secret of the reservation, used of the
--          first charge, of the second, …}

local REPEAT = 10000 -- quota.RepeatWindow
local HEAD, REPLY = 2, 3
local n = (#ARGV - HEAD) / 4
local function arg(i, k) return ARGV[HEAD + 4 * (i - 1) + k] end

local names = {}
for i = 1, n do names[i] = arg(i, 1) end
local values = redis.call('HMGET', KEYS[1], unpack(names))

local reply = {now, 1, ''}
local starts, last, refused = {}, 0, false
for i = 1, n do
  local max, cost = tonumber(arg(i, 3)), tonumber(arg(i, 4))
  local start, stop = bounds(tonumber(arg(i, 2)), now)
  local used = used_in(values[i], start)
  if cost > 0 and used + cost > max then refused = true end
  if cost ~= 0 and stop > last then last = stop end
  starts[i], reply[REPLY + i] = start, used
end

-- A repeat gets the answer of the first, of another window though it be.
local kept = KEYS[2] and redis.call('GET', KEYS[2])
if kept then
  local first = words(kept)
  if now - tonumber(first[1]) < REPEAT then
    reply[1], reply[3] = tonumber(first[1]), first[2]
    for k = 4, #first, WORDS do
      for i = 1, n do
        if names[i] == first[k] then reply[REPLY + i] = tonumber(first[k + 5]) end
      end
    end
    return reply
  end
end

if refused then
  reply[2] = 0
  return reply
end

local writes = {}
for i = 1, n do
  local cost = tonumber(arg(i, 4))
  if cost ~= 0 then
    local used = math.max(math.min(reply[REPLY + i] + cost, MAX_USED), 0)
    reply[REPLY + i] = used
    writes[#writes + 1] = names[i]
    writes[#writes + 1] = counted(starts[i], used)
  end
end
if last > 0 then write(KEYS[1], writes, last) end

if KEYS[2] then
  local record = {string.format('%.0f', now), ARGV[1], '0'}
  for i = 1, n do
    record[#record + 1] = names[i]
    record[#record + 1] = arg(i, 2)
    record[#record + 1] = arg(i, 3)
    record[#record + 1] = string.format('%.0f %s %.0f', starts[i], arg(i, 4), reply[REPLY + i])
  end
  redis.call('SET', KEYS[2], table.concat(record, ' '), 'PX', math.max(tonumber(ARGV[2]), REPEAT))
  reply[3] = ARGV[1]
end
return reply
