-- Takes webhooks that are due, callers in turn, and none from a caller or for a receiver that has its share of the hands.
-- What is due stands in a line for its caller and receiver; what is taken goes back on the timetable, so that it is tried
-- again where the process that took it dies.
-- ARGV: now, hands that are free, when what is taken is due again, hands for one caller, hands for one receiver,
-- JSON {"owners": {name: hands that work for it}, "hosts": {…}}.
-- Returns id, message, host of each that is taken.
local MOVE = 1000 -- messages that find their line in one call
local LOOK = 16 -- receivers of one caller that are looked at, any of them, so that a caller may have many
local now, free, hands = tonumber(ARGV[1]), tonumber(ARGV[2]), cjson.decode(ARGV[6])

-- A message; one that a process of before messages were kept apart left is made of its job's record.
local function message_of(id)
  local text = redis.call('HGET', 'ks:webhooks:messages', id)
  if text then return cjson.decode(text) end
  local job = redis.call('HMGET', 'ks:job:' .. id, 'webhook', 'owner', 'traceparent', 'status', 'finished_at')
  if (job[1] or '') == '' or not job[5] then return nil end
  local tries = redis.call('LLEN', 'ks:job:' .. id .. ':webhook')
  return {url = job[1], owner = job[2] or '', traceparent = job[3] or '', status = job[4], at = job[5], tries = tries}
end

local due = redis.call('ZRANGEBYSCORE', 'ks:webhooks', '-inf', now, 'WITHSCORES', 'LIMIT', 0, MOVE)
for at = 1, #due, 2 do
  local id, message = due[at], message_of(due[at])
  if message then
    local host = string.lower(string.match(message.url, '^%a+://([^/?#]*)') or '')
    message.line = 'ks:webhooks:line:' .. message.owner .. ' ' .. host
    redis.call('HSET', 'ks:webhooks:messages', id, cjson.encode(message))
    redis.call('ZADD', message.line, due[at + 1], id)
    redis.call('SADD', 'ks:webhooks:hosts:' .. message.owner, host)
    redis.call('SADD', 'ks:webhooks:owners', message.owner)
  end
  redis.call('ZREM', 'ks:webhooks', id)
end

-- The first of a line; its receiver is forgotten where there is none.
local function look(line)
  local first = redis.call('ZRANGE', line.key, 0, 0, 'WITHSCORES')
  line.id, line.since = first[1], tonumber(first[2] or 0)
  if not line.id then redis.call('SREM', 'ks:webhooks:hosts:' .. line.owner, line.host) end
end

local lines = {}
for _, owner in ipairs(redis.call('SMEMBERS', 'ks:webhooks:owners')) do
  local hosts = redis.call('SRANDMEMBER', 'ks:webhooks:hosts:' .. owner, LOOK)
  if #hosts == 0 then redis.call('SREM', 'ks:webhooks:owners', owner) end
  for _, host in ipairs(hosts) do
    local line = {owner = owner, host = host, key = 'ks:webhooks:line:' .. owner .. ' ' .. host}
    look(line)
    lines[#lines + 1] = line
  end
end

local taken = {}
while free > 0 do
  local best, least
  for _, line in ipairs(lines) do
    local of_owner, of_host = hands.owners[line.owner] or 0, hands.hosts[line.host] or 0
    if line.id and of_owner < tonumber(ARGV[4]) and of_host < tonumber(ARGV[5]) then
      if not best or of_owner < least or (of_owner == least and line.since < best.since) then
        best, least = line, of_owner
      end
    end
  end
  if not best then break end
  redis.call('ZREM', best.key, best.id)
  local text = redis.call('HGET', 'ks:webhooks:messages', best.id)
  if text then -- else it was delivered meanwhile
    redis.call('ZADD', 'ks:webhooks', ARGV[3], best.id)
    for _, each in ipairs({best.id, text, best.host}) do taken[#taken + 1] = each end
    hands.owners[best.owner] = least + 1
    hands.hosts[best.host] = (hands.hosts[best.host] or 0) + 1
    free = free - 1
  end
  look(best)
end
return taken
