-- "top:N" of this slice now has kernels; some ranks may have none and are skipped. Once per slice.
-- KEYS: slice. ARGV: token, skipped count. Returns 1, or 0 where the token no longer holds the slice.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' or redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
if redis.call('HSETNX', KEYS[1], 'resolved', 1) == 1 then
  local job = 'ks:job:' .. redis.call('HGET', KEYS[1], 'job')
  redis.call('HINCRBY', job, 'unresolved', -1)
  redis.call('HINCRBY', job, 'planned', 0 - tonumber(ARGV[2]))
end
return 1
