-- Records that "top:N" of this slice is resolved to kernels. Items whose rank has no active kernel are skipped.
-- Has an effect once per slice. KEYS: slice. ARGV: token, index of each skipped item.
-- Returns 1, or 0 if the token is no longer valid.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' or redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
if redis.call('HSETNX', KEYS[1], 'resolved', 1) == 1 then
  local job = 'ks:job:' .. redis.call('HGET', KEYS[1], 'job')
  redis.call('HINCRBY', job, 'unresolved', -1)
  for place = 2, #ARGV do
    redis.call('HINCRBY', job, 'planned', -redis.call('HSETNX', job .. ':results', ARGV[place], ''))
  end
end
return 1
