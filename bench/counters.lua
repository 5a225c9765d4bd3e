-- Takes one from three counters of each key, or from none of them: the least that an
-- exact decision of many requests in one call is. It knows no costs, no reservations, no
-- repeats and no months.
--
-- KEYS  for each request a hash: field = window length in ms, value = "<window start, ms> <used>"
-- ARGV  for each of the three counters window length in ms and maximum
-- returns for each request 1 = admitted or 0, and what is used of the three

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lengths, maxima, starts = {}, {}, {}
for i = 1, 3 do
  local length = tonumber(ARGV[2 * i - 1])
  lengths[i], maxima[i], starts[i] = ARGV[2 * i - 1], tonumber(ARGV[2 * i]), now - now % length
end
local ttl = starts[3] + tonumber(lengths[3]) - now

local reply = {}
for _, key in ipairs(KEYS) do
  local values = redis.call('HMGET', key, lengths[1], lengths[2], lengths[3])
  local used, admitted = {}, 1
  for i = 1, 3 do
    local start, count = string.match(values[i] or '', '^(%d+) (%d+)$')
    used[i] = tonumber(start) == starts[i] and tonumber(count) or 0
    if used[i] >= maxima[i] then admitted = 0 end
  end
  if admitted == 1 then
    for i = 1, 3 do used[i] = used[i] + 1 end
    redis.call('HSET', key,
      lengths[1], string.format('%.0f %.0f', starts[1], used[1]),
      lengths[2], string.format('%.0f %.0f', starts[2], used[2]),
      lengths[3], string.format('%.0f %.0f', starts[3], used[3]))
    if used[3] == 1 then redis.call('PEXPIRE', key, ttl) end
  end
  reply[#reply + 1] = admitted
  for i = 1, 3 do reply[#reply + 1] = used[i] end
end
return reply
