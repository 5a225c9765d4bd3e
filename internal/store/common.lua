-- What the scripts that count share: windows, and counters. It is put before each of them.

local format, sub = string.format, string.sub
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
  if length < 0 then
    if length >= -2 then return month_bounds(now) end
    length = -length
  end
  local offset = 0
  if length == WEEK then offset = MONDAY end
  local start = now - (now - offset) % length
  return start, start + length
end

-- Redis' own time in ms, so that clock skew between instances changes nothing; what it was when the
-- script began; and how far ahead of that it may be.
local now, clock, step

-- Is to be called first.
local function begin()
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
  clock, step = now, 10000 -- ms, step of steady.go: who goes back further was set
end

-- Whether a time at which something was counted is yet to come: the clock was corrected, and
-- stands still until then. Else a window that has ended would be counted from zero once more,
-- and then the current one.
local function ahead(ms) return ms and ms > now and ms - clock < step end

-- Fails with what is to be now where that is so, as a text: Redis 7.0 crashes where a script
-- fails with a table of its own.
local LATER = 'counted at a time that is yet to come: '
local function see(ms)
  if ahead(ms) then error(LATER .. format('%.0f', ms), 0) end
end

-- When the window of a counter's field begins; nil: it has none.
local function start_of(value) return value and tonumber(string.match(value, '^%d+')) or nil end

-- A whole number as text: with %d, a third of the price, where a C long has 64 bits.
local WHOLE = format('%d', MAX_USED) == '4000000000000000' and '%d' or '%.0f'
local function whole(n) return format(WHOLE, n) end

-- What a counter's field says is used of the window whose start, and a space, is prefix;
-- nil: it is of another window.
local function used_in(value, prefix)
  local size = #prefix
  if value and sub(value, 1, size) == prefix then return tonumber(sub(value, size + 1)) end
  see(start_of(value))
  return nil
end

local function clamp(used)
  if used > MAX_USED then return MAX_USED elseif used < 0 then return 0 end
  return used
end

-- Sees to it that a counters' hash is kept until the longest of the windows ends in which
-- something is counted for the first time. The TTL only frees memory, and only ever grows:
-- another request may have counted a longer window.
local function keep_until(key, stop)
  local left = stop - clock -- now may be ahead of what Redis goes by
  if redis.call('PTTL', key) < left then redis.call('PEXPIRE', key, left) end
end

-- Writes fields of a counters' hash; last is when the longest of their windows ends, 0
-- where the hash is kept so long already.
local function write(key, fields, last)
  redis.call('HSET', key, unpack(fields))
  if last > 0 then keep_until(key, last) end
end
