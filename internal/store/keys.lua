-- Writes changes of the directory of keys and of its audit log: all, or none.
--
-- KEYS[1]  the records, a hash: ID = JSON
-- KEYS[2]  whose the digests of keys are, a hash: the hexadecimal digest of a key's hash,
--          whatever its scheme = ID
-- KEYS[3]  a random text that names the directory, made with the first write
-- KEYS[4]  the audit log, a stream; its last ID is the version of the directory
-- ARGV     the name of the directory that the caller knows ('' = none), one for a new
--          directory, how many events to keep, then five for each change: ID, the
--          revision that it changes (0 = there must be no record), the record's JSON,
--          its digests with spaces between, the event's JSON
-- returns  {'ok', name of the directory}, or where nothing was written {'lost', ''} or
--          {'taken', n}, {'conflict', n}, {'unreadable', n}: the first change at
--          fault, counted from 0

local HEAD, EACH = 3, 5
local name = redis.call('GET', KEYS[3])
if ARGV[1] ~= '' and ARGV[1] ~= name then return {'lost', ''} end

-- Whose a hash is after the changes so far; false = nobody's.
local owners = {}
local function owner(hash)
  if owners[hash] == nil then owners[hash] = redis.call('HGET', KEYS[2], hash) end
  return owners[hash]
end

local function release(id, hash)
  local digest = type(hash) == 'string' and string.match(hash, '[^:]+$')
  if digest and owner(digest) == id then owners[digest] = false end
end

for at = HEAD, #ARGV - 1, EACH do
  local n, id, revision = (at - HEAD) / EACH, ARGV[at + 1], tonumber(ARGV[at + 2])
  local text = redis.call('HGET', KEYS[1], id)
  if text and revision == 0 then return {'taken', n} end
  if revision > 0 then
    local readable, old = pcall(cjson.decode, text or '{}')
    if not readable or type(old) ~= 'table' then return {'unreadable', n} end
    if old.revision ~= revision then return {'conflict', n} end
    release(id, old.hash)
    if type(old.former) == 'table' then release(id, old.former.hash) end
  end
  for hash in string.gmatch(ARGV[at + 4], '%S+') do
    if owner(hash) and owner(hash) ~= id then return {'taken', n} end
    owners[hash] = id
  end
end

if not name then
  name = ARGV[2]
  redis.call('SET', KEYS[3], name)
end
for hash, id in pairs(owners) do
  if id then redis.call('HSET', KEYS[2], hash, id) else redis.call('HDEL', KEYS[2], hash) end
end
for at = HEAD, #ARGV - 1, EACH do
  redis.call('HSET', KEYS[1], ARGV[at + 1], ARGV[at + 3])
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[3], '*', 'key', ARGV[at + 1], 'event', ARGV[at + 5])
end
return {'ok', name}
