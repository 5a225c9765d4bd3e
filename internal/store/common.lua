-- What both scripts share: windows, counters, and the record of a reservation. It
-- is put before each of them.

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

-- Redis' own time in ms, so that clock skew between instances changes nothing.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- What a counter's field says is used of the window that began at start.
local function used_in(value, start)
  if not value then return 0 end
  local counted_from, count = string.match(value, '^(%d+) (%d+)$')
  if tonumber(counted_from) == start then return tonumber(count) end
  return 0
end

local function counted(start, used) return string.format('%.0f %.0f', start, used) end

-- Writes fields of a counters' hash; last is when the longest of their windows
-- ends. The TTL only frees memory, and only ever grows: another request may have
-- counted a longer window.
local function write(key, fields, last)
  redis.call('HSET', key, unpack(fields))
  if redis.call('PTTL', key) < last - now then redis.call('PEXPIRE', key, last - now) end
end

-- A reservation is words: when it was made, its secret, 1 if it is settled, then
-- six for each charge: counter, window length, maximum, window start, what was
-- taken, and what was used after that.
local WORDS = 6
local function words(text)
  local list = {}
  for word in string.gmatch(text, '%S+') do list[#list + 1] = word end
  return list
end
