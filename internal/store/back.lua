-- Says since when a part of Redis counts again: since the first instance asked this. It
-- needs common.lua before it.
--
-- KEYS[1]  when that was
-- ARGV     how long to remember it, in ms
-- returns  {since when, now}, in ms

begin()
local back = redis.call('GET', KEYS[1])
if not back then
  back = whole(now)
  redis.call('SET', KEYS[1], back, 'PX', ARGV[1])
end
return {tonumber(back), now}
