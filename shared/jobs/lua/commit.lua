-- Stores the result of one item. KEYS: slice. ARGV: slice id, token, lease seconds, item index, result JSON, 1 if it
-- failed, fingerprint of the computation or '', seconds for which the result is cached.
-- Returns 1, or 0 if the token is no longer valid. A second commit of an item changes nothing.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' or redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 0 end
local id = redis.call('HGET', KEYS[1], 'job')
local job = 'ks:job:' .. id
redis.call('ZADD', 'ks:leases', now() + ARGV[3], ARGV[1])
if redis.call('HSETNX', job .. ':results', ARGV[4], ARGV[5]) == 1 then
  redis.call('HINCRBY', job, 'completed', 1)
  redis.call('HINCRBY', job, 'failed', ARGV[6])
  redis.call('HSET', KEYS[1], 'strikes', 0, 'company', 0)
  work_done(KEYS[1], math.max(0, (redis.call('HGET', KEYS[1], 'share') or 0) - 1))
  if ARGV[7] ~= '' then
    redis.call('SET', 'ks:same:' .. ARGV[7], id .. ':' .. ARGV[4], 'EX', ARGV[8])
  end
  add_event(id, 'result', ARGV[4])
end
return 1
