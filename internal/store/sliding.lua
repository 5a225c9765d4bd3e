-- What the scripts that count need where a window slides: where its length is below -1. It needs
-- common.lua before it.
--
-- Of what was used in the window before counts the part of the current one that is yet to come.
-- It is what the counter says if nothing has been counted since. Who counts first in a window moves
-- it to a counter of its own, counter .. BEFORE, whose window is the one before.

local BEFORE = '!before'

-- By the charges of an order that slide: what was used before.
local before = {}

local sliding = {}

-- Adds to a current window what it has besides.
function sliding.window(window, length)
  window.last = bounds(length, window.start - 1)
  window.before = whole(window.last)
  local _, stop = bounds(length, window.stop)
  window.keep = stop
end

-- Shows what a counter has of the window before. Returns its number in the view.
function sliding.show(view, counter, window, stop)
  return show(view, counter .. BEFORE, window.before, stop, counter)
end

-- Finds out what was used before. Returns the maxima, and what the window before leaves of them.
local lowered = {}
function sliding.weigh(plan, places)
  for i = 1, plan.n do lowered[i] = plan.maxima[i] end
  for k, i in ipairs(plan.slides) do
    local window = plan.windows[i]
    before[k] = used_at[places[plan.n + k]]
    lowered[i] = lowered[i] - math.ceil(before[k] * ((window.stop - now) / (window.stop - window.start)))
  end
  return lowered
end

-- Reads what was used before from a reservation, of those charges that slide too.
function sliding.read(plan, counters, kept, place)
  for number in gmatch(sub(kept, place), '[^,]+') do
    local counter = table.remove(counters, 1)
    for k, i in ipairs(plan.slides) do
      if plan.names[i] == counter then before[k] = number + 0 end
    end
  end
end
