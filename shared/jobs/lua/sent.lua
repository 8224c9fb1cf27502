-- Records that a message about the slice is sent now. KEYS: slice. Returns its queue, or nil if the slice is gone.
local queue = redis.call('HGET', KEYS[1], 'queue')
if queue then redis.call('HSET', KEYS[1], 'sent_at', now()) end
return queue
