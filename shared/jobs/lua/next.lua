-- Claims the slice whose turn it is, queued → running. Callers take turns, each with the slice that has waited longest.
-- ARGV: queue, token, lease seconds, worker, and the buckets that the worker can run.
-- Returns {number of queued slices, how many of them have no message in the broker, the result of `claimed` or nil}.
-- A repeated call with the same token, after the response was lost, returns the same claim.
local queue, token, worker = ARGV[1], ARGV[2], ARGV[4]

local function answer(claim)
  local waiting = redis.call('ZCARD', 'ks:queued:' .. queue)
  return {waiting, waiting - redis.call('LLEN', queue), claim}
end

local known, id = string.match(redis.call('GET', 'ks:claimed:' .. worker) or '', '^(%S+) (%S+)$')
if known == token then
  local holds = redis.call('HGET', 'ks:slice:' .. id, 'token') == token
  return answer(holds and claimed(id) or nil)
end

-- Of the callers in these buckets, the one who was served least recently (ties by name), and of that caller's slices the one
-- that has waited longest.
local function choose()
  local owner, turn
  for at = 5, #ARGV do
    local first = redis.call('ZRANGE', 'ks:turns:' .. queue .. ':' .. ARGV[at], 0, 0, 'WITHSCORES')
    local at_turn = tonumber(first[2])
    if first[1] and (not turn or at_turn < turn or (at_turn == turn and first[1] < owner)) then
      owner, turn = first[1], at_turn
    end
  end
  if not owner then return nil end
  local oldest, since, bucket
  for at = 5, #ARGV do
    local first = redis.call('ZRANGE', 'ks:waiting:' .. queue .. ':' .. ARGV[at] .. ':' .. owner, 0, 0, 'WITHSCORES')
    local at_since = tonumber(first[2])
    if first[1] and (not since or at_since < since or (at_since == since and first[1] < oldest)) then
      oldest, since, bucket = first[1], at_since, ARGV[at]
    end
  end
  return oldest, bucket, owner
end

local id, bucket, owner = choose()
while id and redis.call('HGET', 'ks:slice:' .. id, 'status') ~= 'queued' do  -- claimed by an earlier version
  leave(id, queue, bucket, owner)
  id, bucket, owner = choose()
end
if not id then return answer(nil) end
serve(queue, owner)
redis.call('SET', 'ks:claimed:' .. worker, token .. ' ' .. id, 'EX', 60)
return answer(begin(id, token, ARGV[3], worker))
