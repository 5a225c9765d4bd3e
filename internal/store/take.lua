-- Charges all limits of one account, or none of them. The same as Memory.Take.
--
-- KEYS[1]  the account's hash: field = counter, value = "<window start, ms> <used>"
-- ARGV     four for each charge: counter, window length in ms ("-1" = calendar
--          month), maximum, cost (0 looks and takes nothing)
-- returns  {now in ms, 1 = admitted or 0, used of the first charge, of the second, …}
--
-- The time is Redis' own, so that clock skew between instances changes nothing.
-- The TTL only frees memory: a count is void as soon as its window is not the
-- current one.

local MAX_USED = 4e15
local DAY = 86400000
local WEEK, MONDAY = 7 * DAY, 4 * DAY -- the epoch was a Thursday

-- Days from the Unix epoch to the first of a month (m may be 13), proleptic
-- Gregorian; years are counted from March so that leap days come last.
local function days_to(y, m)
  if m > 12 then y, m = y + 1, m - 12 end
  if m <= 2 then y, m = y - 1, m + 12 end
  return 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400)
    + math.floor((153 * (m - 3) + 2) / 5) - 719468
end

-- The month that holds a time: its start and end in ms.
local function month_bounds(now)
  local days = math.floor(now / DAY)
  local y = 1970 + math.floor(days / 365.2425)
  local m = 1
  while days_to(y, 1) > days do y = y - 1 end
  while days_to(y + 1, 1) <= days do y = y + 1 end
  while days_to(y, m + 1) <= days do m = m + 1 end
  return days_to(y, m) * DAY, days_to(y, m + 1) * DAY
end

local function bounds(length, now)
  if length == -1 then return month_bounds(now) end
  local offset = 0
  if length == WEEK then offset = MONDAY end
  local start = now - (now - offset) % length
  return start, start + length
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local n = #ARGV / 4

local names = {}
for i = 1, n do names[i] = ARGV[4 * i - 3] end
local values = redis.call('HMGET', KEYS[1], unpack(names))

local reply = {now, 1}
local starts, last = {}, 0
for i = 1, n do
  local max, cost = tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
  local start, stop = bounds(tonumber(ARGV[4 * i - 2]), now)
  local used = 0
  if values[i] then
    local counted_from, count = string.match(values[i], '^(%d+) (%d+)$')
    if tonumber(counted_from) == start then used = tonumber(count) end
  end
  if cost > 0 then
    if used + cost > max then reply[2] = 0 end
    if stop > last then last = stop end
  end
  starts[i], reply[2 + i] = start, used
end
if reply[2] == 0 or last == 0 then return reply end

local writes = {}
for i = 1, n do
  local cost = tonumber(ARGV[4 * i])
  if cost > 0 then
    local used = math.min(reply[2 + i] + cost, MAX_USED)
    reply[2 + i] = used
    writes[#writes + 1] = names[i]
    writes[#writes + 1] = string.format('%.0f %.0f', starts[i], used)
  end
end
redis.call('HSET', KEYS[1], unpack(writes))
-- Only ever longer: another request may have counted a longer window.
if redis.call('PTTL', KEYS[1]) < last - now then redis.call('PEXPIRE', KEYS[1], last - now) end
return reply
