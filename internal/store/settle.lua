-- Corrects what one order took to what was used, once. The same as Memory.Settle.
--
-- KEYS[1]  the account's counters
-- KEYS[2]  the order's reservation
-- ARGV     the secret; 1 = the charge may only rise; the share of each maximum, in
--          thousandths, that refunds may give back in a window (0 = no refund);
--          then pairs of a metric and what was used of it ("-1" = unknown)
-- returns  0 = there is no such reservation, 1 = settled, 2 = it was before

local SETTLED = 10000 -- ms, settledKept: that a settled reservation is remembered, to know duplicates
local kept = redis.call('GET', KEYS[2])
if not kept then return 0 end
local record = words(kept)
if record[2] ~= ARGV[1] then return 0 end
if record[3] == '1' then return 2 end

local used_of = {}
for i = 4, #ARGV, 2 do used_of[ARGV[i]] = tonumber(ARGV[i + 1]) end
local share = tonumber(ARGV[3])

local writes, last = {}, 0
local function set(field, start, stop, used)
  writes[#writes + 1] = field
  writes[#writes + 1] = counted(start, math.max(math.min(used, MAX_USED), 0))
  if stop > last then last = stop end
end

for k = 4, #record, WORDS do
  local counter, max, charged, taken = record[k], tonumber(record[k + 2]), tonumber(record[k + 3]), tonumber(record[k + 4])
  local start, stop = bounds(tonumber(record[k + 1]), now)
  local actual = used_of[string.match(counter, '^[^/]+')]
  if actual == nil or actual == -1 then actual = taken end
  if share > 0 then
    local refunds = counter .. '!refunded'
    local refunded = used_in(redis.call('HGET', KEYS[1], refunds), start)
    local back = math.max(math.min(taken, math.floor(max / 1000) * share + math.floor(max % 1000 * share / 1000) - refunded), 0)
    actual = taken - back
    if back > 0 and start == charged then set(refunds, start, stop, refunded + back) end
  elseif ARGV[2] == '1' then
    actual = math.max(actual, taken)
  end
  local change = actual - taken
  if change ~= 0 and (start == charged or change > 0) then
    set(counter, start, stop, used_in(redis.call('HGET', KEYS[1], counter), start) + change)
  end
end
if last > 0 then write(KEYS[1], writes, last) end
record[3] = '1'
redis.call('SET', KEYS[2], table.concat(record, ' '), 'PX', SETTLED)
return 1
