-- Adds what one instance has admitted to an account while it could not reach Redis,
-- once: a repeat of the batch changes nothing and gets the same answer.
--
-- KEYS[1]  the account's counters
-- KEYS[2]  the batch
-- KEYS[3…] reservations that the instance has made meanwhile
-- ARGV     how long to remember the batch in ms, how many counters follow; five for
--          each: counter, window length as in batch.lua, start and end of the window in ms,
--          what to add (negative gives back); then two for each reservation: its record and its TTL in ms
-- returns  now in ms, then what is used of each counter after that, -1 = its window is
--          not the current one, and nothing was added; -2 = it is the one before, which
--          still counts, and that has it

begin()
local kept = redis.call('GET', KEYS[2])
if kept then
  local list = {}
  for word in string.gmatch(kept, '%S+') do list[#list + 1] = word end
  return list
end

-- Adds to a counter in the current window, which begins then: the value of its field, and what is
-- used of it after that.
local function added(counter, start, amount)
  local prefix = whole(start) .. ' '
  local used = clamp((used_in(redis.call('HGET', KEYS[1], counter), prefix) or 0) + amount)
  return prefix .. whole(used), used
end

-- Adds to a counter whose window slides. Returns what is used of it after that.
local function add_sliding(counter, length, start, amount)
  local fields, window = {}, {}
  local sliding = make_sliding(fields)
  window.start, window.stop = bounds(length, now)
  sliding.window(window, length)
  if start == window.last then
    sliding.add(KEYS[1], counter, window, amount, 0, 0)
    write(KEYS[1], fields, window.keep)
    return -2
  elseif start ~= window.start then
    return -1
  end
  local value, used = added(counter, start, amount)
  local n = sliding.add(KEYS[1], counter, window, 0, 0, 0)
  fields[n + 1], fields[n + 2] = counter, value
  write(KEYS[1], fields, window.keep)
  return used
end

local HEAD = 2
local n = tonumber(ARGV[2])
for i = 1, n do
  local start = start_of(redis.call('HGET', KEYS[1], ARGV[HEAD + 5 * i - 4]))
  if ahead(start) then now = start end
end
step = 0 -- nothing else is ahead: from here on there are writes, after which nothing may begin anew
local reply = {whole(now)}
local writes, last = {}, 0
for i = 1, n do
  local at = HEAD + 5 * (i - 1)
  local counter, length, start, stop, amount = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local used = -1
  if length < -1 then
    used = add_sliding(counter, length, start, amount)
  elseif start <= now and now < stop then
    writes[#writes + 1] = counter
    writes[#writes + 1], used = added(counter, start, amount)
    if stop > last then last = stop end
  end
  reply[#reply + 1] = whole(used)
end
if last > 0 then write(KEYS[1], writes, last) end

for k = 3, #KEYS do
  local at = HEAD + 5 * n + 2 * (k - 3)
  redis.call('SET', KEYS[k], ARGV[at + 1], 'PX', ARGV[at + 2], 'NX')
end
redis.call('SET', KEYS[2], table.concat(reply, ' '), 'PX', ARGV[1])
return reply
