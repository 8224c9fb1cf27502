-- Called about once a second by each process, for all of its loops: acquires or renews their locks, and records their
-- successes and failures. A process that holds a lock also deletes the records of loops that it does not have: they are of
-- another version.
-- If no process has called for too long, Redis was unavailable (to workers as well) or no housekeeping ran: for some time
-- an expired lease then does not mean a lost worker.
-- ARGV: the process's token, milliseconds that a lock lasts, seconds without a call that are too long, milliseconds of
-- that grace time, then for each loop: name, seconds between its rounds, 1 if the process wants its lock, milliseconds
-- since its last success or '', rounds that failed since the last call.
-- Returns for each loop 1 if the process holds its lock, else 0.
redis.call('DEL', 'ks:housekeeping:none') -- a write that needs no memory: after it, a full Redis allows the others
local success, failed = 'ks:housekeeping:success', 'ks:housekeeping:failures'
local held, holds, known, now = {}, false, {}, redis.call('TIME')
local at = now[1] + now[2] / 1e6
local heard = tonumber(redis.call('GET', 'ks:housekeeping:heard') or at)
if at - heard > tonumber(ARGV[3]) then redis.call('SET', 'ks:housekeeping:grace', 1, 'PX', ARGV[4]) end
redis.call('SET', 'ks:housekeeping:heard', string.format('%.3f', at))
for place = 5, #ARGV, 5 do
  local name, period, wanted, since, failures = unpack(ARGV, place, place + 4)
  local lock = 'ks:housekeeping:lock:' .. name
  local holder, mine = redis.call('GET', lock), 0
  if wanted == '1' and holder == ARGV[1] then
    redis.call('PEXPIRE', lock, ARGV[2])
    mine = 1
  elseif wanted == '1' and not holder then
    redis.call('SET', lock, ARGV[1], 'PX', ARGV[2])
    mine = 1
  end
  if mine == 1 then redis.call('HSETNX', success, name, string.format('%.3f %s', at, period)) end
  if since ~= '' then redis.call('HSET', success, name, string.format('%.3f %s', at - since / 1000, period)) end
  if failures ~= '0' then redis.call('HINCRBY', failed, name, failures) end
  held[#held + 1] = mine
  holds = holds or mine == 1
  known[name] = true
end
if holds then
  for _, key in ipairs({success, failed}) do
    for _, name in ipairs(redis.call('HKEYS', key)) do
      if not known[name] then redis.call('HDEL', key, name) end
    end
  end
end
return held
