-- What the scripts that count share: windows, and counters. It is put before each of them.

local format, sub, find, gmatch = string.format, string.sub, string.find, string.gmatch
local concat, unpack = table.concat, unpack
local as_doubles, doubles = struct.pack, struct.unpack
local call = redis.call
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

-- What keys of text say: all that the script has read and written.
local texts

-- How much is kept for later calls, where something is.
local cached = 0

-- Is to be called first.
local function begin()
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
  clock, step, texts = now, 10000, {} -- ms, step of steady.go: who goes back further was set
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

-- A whole number as text: with %d, a third of the price, where a C long has 64 bits.
local WHOLE = format('%d', MAX_USED) == '4000000000000000' and '%d' or '%.0f'
local function whole(n) return format(WHOLE, n) end

local function clamp(used)
  if used > MAX_USED then return MAX_USED elseif used < 0 then return 0 end
  return used
end

local function get(key)
  local text = texts[key]
  if not text then
    text = call('GET', key)
    texts[key] = text
  end
  return text
end

-- The counters of an account are a text: of each its name, and when its window began, in ms; a bar;
-- then what is used of each, as a double: "requests/minute 1795901940000;tokens/minute
-- 1795901940000;|" and 16 bytes. What stands before the numbers, the head, is that of many accounts.
local BAR, COUNTER = '|', '([^ ]+) (%d+);'

-- A view is of some of an account's counters, in their current windows: count, how many;
-- names; starts of their windows, as texts; stops, until when they are to be kept, nil = nothing is
-- written of one; sources, where one is of the window before: the counter that may still have what
-- was used in that; and routes to it, by head.
local function new_view()
  return {count = 0, names = {}, starts = {}, stops = {}, sources = {}, routes = {}}
end

-- Adds a counter to a view. Returns its number there.
local function show(view, name, start, stop, source)
  local n = view.count + 1
  view.count, view.names[n], view.starts[n], view.stops[n], view.sources[n] = n, name, start, stop, source
  return n
end

-- Returns which of a view's counters a text has of another window, or not at all: from where its
-- number is to be copied, or 0.
local function find_stale(view, starts, places)
  local stale = {}
  for i = 1, view.count do
    local place, source = places[view.names[i]], view.sources[i]
    if not place or starts[place] ~= view.starts[i] then
      if place then see(tonumber(starts[place])) end
      local from = source and places[source]
      stale[i] = from and starts[from] == view.starts[i] and from or 0
    end
  end
  return stale
end

-- Has a number of a route's begin as another, or as 0.
local function renew(route, place, from)
  if from > 0 then
    route.copies[#route.copies + 1] = {from = from, to = place}
  else
    route.zeros[#route.zeros + 1] = place
  end
end

-- A route leads from the texts of a head to a view: had, how many counters they have; count and
-- head, of the text that is written; places of the view's counters there, or beyond, where nothing is
-- written; copies, numbers that go to other places; zeros, places where it is counted anew; and stop,
-- until when what is counted anew is to be kept, 0 = nothing is.
local function find_route(view, head)
  if sub(head, -1) ~= BAR then error('these are no counters', 0) end
  local had, names, starts, places = 0, {}, {}, {}
  for name, start in gmatch(head, COUNTER) do
    had = had + 1
    names[had], starts[had], places[name] = name, start, had
  end
  local route = {had = had, count = had, places = {}, copies = {}, zeros = {}, stop = 0}
  local stale, beyond = find_stale(view, starts, places), {}
  for i = 1, view.count do
    local name, stop = view.names[i], view.stops[i]
    local place = places[name]
    if stale[i] and not stop then
      beyond[#beyond + 1] = i
    elseif stale[i] then
      if not place then
        place = route.count + 1
        route.count, names[place], places[name] = place, name, place
      end
      starts[place], route.stop = view.starts[i], math.max(route.stop, stop)
      renew(route, place, stale[i])
    end
    route.places[i] = place
  end
  for k, i in ipairs(beyond) do
    route.places[i] = route.count + k
    renew(route, route.count + k, stale[i])
  end
  for i = 1, route.count do names[i] = names[i] .. ' ' .. starts[i] .. ';' end
  route.head = concat(names) .. BAR
  route.reads, route.writes = '<' .. string.rep('d', had), '<' .. string.rep('d', route.count)
  return route
end

-- What is used of the counters of the account that was opened last, by place.
local FEW = 6
local used_at = {0, 0, 0, 0, 0, 0}

-- Reads the counters of an account as a view shows them, into used_at. Returns the route.
local function open(view, key)
  local text = get(key) or BAR
  local bar = find(text, BAR, 1, true)
  local head = sub(text, 1, bar)
  local route = view.routes[head]
  if not route then
    route = find_route(view, head)
    view.routes[head], cached = route, cached + 1
  end
  if route.had <= FEW then -- a table for each would cost more than the rest
    used_at[1], used_at[2], used_at[3], used_at[4], used_at[5], used_at[6] = doubles(route.reads, text, bar + 1)
  else
    used_at = {doubles(route.reads, text, bar + 1)}
  end
  local copies, zeros = route.copies, route.zeros
  for i = 1, #copies do used_at[copies[i].to] = used_at[copies[i].from] end
  for i = 1, #zeros do used_at[zeros[i]] = 0 end
  return route
end

-- Writes the counters of the account that was opened last. They are kept until the longest of the
-- windows ends in which is counted anew. The TTL only frees memory, and only ever grows: another
-- request may have counted a longer window.
local function write(route, key)
  local text = route.head .. as_doubles(route.writes, unpack(used_at, 1, route.count))
  call('SET', key, text, 'KEEPTTL')
  texts[key] = text
  if route.stop > 0 then
    local left = route.stop - clock -- now may be ahead of what Redis goes by
    if call('PTTL', key) < left then call('PEXPIRE', key, left) end
  end
end
