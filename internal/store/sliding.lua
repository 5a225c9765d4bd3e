-- What those that count need where a window slides: where its length is below -1. It needs
-- common.lua before it.
--
-- Of what was used in the window before counts the part of the current one that is yet to come.
-- It is what the counter's field says if nothing has been counted since. Who counts first in a
-- window moves it to a field of its own, counter .. BEFORE: "<start of the window before> <used>".
--
-- fields  what it writes: fields and their values in turn
-- Functions that add to these are given how many are there, and return how many are then.

local function make_sliding(fields)
  local BEFORE = '!before'
  local before, moved, lowered = {}, {}, {} -- by the charges of a plan that slide
  local sliding = {BEFORE = BEFORE, before = before}

  -- Adds to a current window what it has besides.
  function sliding.window(window, length)
    window.last = bounds(length, window.start - 1)
    window.before = whole(window.last) .. ' '
    local _, stop = bounds(length, window.stop)
    window.keep = stop
  end

  -- What was used before a window, by the counter's own field and that of the window before,
  -- and whether that has it.
  function sliding.used(window, value, moved_value)
    local has = used_in(moved_value, window.before)
    return has or used_in(value, window.before) or 0, has ~= nil
  end

  -- Finds out what was used before. Returns the maxima, and what the window before leaves of them.
  function sliding.weigh(plan, values)
    for i = 1, plan.n do lowered[i] = plan.maxima[i] end
    for k, i in ipairs(plan.slides) do
      local window = plan.windows[i]
      before[k], moved[k] = sliding.used(window, values[i], values[plan.n + k])
      lowered[i] = lowered[i] - math.ceil(before[k] * ((window.stop - now) / (window.stop - window.start)))
    end
    return lowered
  end

  -- Moves what was used before, of what has not been and is counted. stop is until when all is
  -- to be kept.
  function sliding.move(plan, n, stop)
    for k, i in ipairs(plan.slides) do
      if plan.costs[i] ~= 0 and not moved[k] then
        fields[n + 1], fields[n + 2] = plan.counters[plan.n + k], plan.windows[i].before .. whole(before[k])
        n, stop = n + 2, math.max(stop, plan.stops[i])
      end
    end
    return n, stop
  end

  -- Reads what was used before from a reservation, of those charges that slide too.
  function sliding.read(plan, counters, kept, place)
    for number in string.gmatch(string.sub(kept, place), '[^,]+') do
      local counter = table.remove(counters, 1)
      for k, i in ipairs(plan.slides) do
        if plan.counters[i] == counter then before[k] = number + 0 end
      end
    end
  end

  function sliding.answer(plan, reply, n)
    for k = 1, #plan.slides do reply[n + k] = before[k] end
    return n + #plan.slides
  end

  -- Adds to what was used before, and moves it if it has not been.
  function sliding.add(key, counter, window, change, n, stop)
    local values = redis.call('HMGET', key, counter, counter .. BEFORE)
    local was, has = sliding.used(window, values[1], values[2])
    if has and change == 0 then return n, stop end
    fields[n + 1], fields[n + 2] = counter .. BEFORE, window.before .. whole(clamp(was + change))
    return n + 2, math.max(stop, window.keep)
  end

  return sliding
end
