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

local HEAD, EACH = 2, 5
local n = tonumber(ARGV[2])
local function given(i)
  local at = HEAD + EACH * (i - 1)
  return ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
end

local began = {}
for name, start in gmatch(get(KEYS[1]) or '', COUNTER) do began[name] = tonumber(start) end
for i = 1, n do
  local start = began[(given(i))]
  if ahead(start) then now = start end
end
step = 0 -- nothing else is ahead: from here on there are writes, after which nothing may begin anew

-- Which of the view's counters each is added to, and what is answered then if it is not what is used.
local view, to, instead = new_view(), {}, {}
for i = 1, n do
  local counter, length, start, stop = given(i)
  if length < -1 then
    local window = {}
    window.start, window.stop = bounds(length, now)
    sliding.window(window, length)
    if start == window.start then
      to[i] = show(view, counter, whole(start), window.keep)
      sliding.show(view, counter, window, window.keep)
    elseif start == window.last then
      to[i], instead[i] = sliding.show(view, counter, window, window.keep), -2
    end
  elseif start <= now and now < stop then
    to[i] = show(view, counter, whole(start), stop)
  end
end

local reply = {whole(now)}
local route = view.count > 0 and open(view, KEYS[1])
for i = 1, n do
  local used = -1
  if to[i] then
    local _, _, _, _, amount = given(i)
    local place = route.places[to[i]]
    used_at[place] = clamp(used_at[place] + amount)
    used = instead[i] or used_at[place]
  end
  reply[i + 1] = whole(used)
end
if route then write(route, KEYS[1]) end

for k = 3, #KEYS do
  local at = HEAD + EACH * n + 2 * (k - 3)
  redis.call('SET', KEYS[k], ARGV[at + 1], 'PX', ARGV[at + 2], 'NX')
end
redis.call('SET', KEYS[2], table.concat(reply, ' '), 'PX', ARGV[1])
return reply
