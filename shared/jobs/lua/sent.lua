-- A message about the slice goes out now. KEYS: slice. Returns its queue, or nothing where the slice is gone.
local queue = redis.call('HGET', KEYS[1], 'queue')
if queue then redis.call('HSET', KEYS[1], 'sent_at', now()) end
return queue
