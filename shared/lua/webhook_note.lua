-- Records an attempt to deliver a webhook: logs it with the job, if that still exists, and deletes the message or
-- schedules the next attempt. ARGV: job id, the attempt as JSON, 1 if it failed, now, JSON of the seconds between attempts,
-- the message's round.
-- Returns the outcome: 'delivered', 'failed' or 'given_up'; nil if there is no such message any more.
local text = redis.call('HGET', 'ks:webhooks:messages', ARGV[1])
if not text then
  redis.call('ZREM', 'ks:webhooks', ARGV[1])
  return nil
end
local message = cjson.decode(text)
if (message.round or 0) ~= tonumber(ARGV[6]) then return nil end  -- the job was retried: there is a newer message
message.tries = (message.tries or 0) + 1
local delay = cjson.decode(ARGV[5])[message.tries]
local outcome = ARGV[3] == '0' and 'delivered' or delay and 'failed' or 'given_up'
if redis.call('EXISTS', 'ks:job:' .. ARGV[1]) == 1 then
  redis.call('RPUSH', 'ks:job:' .. ARGV[1] .. ':webhook', ARGV[2])
end
redis.call('HINCRBY', 'ks:webhooks:tried', outcome, 1)
if outcome == 'failed' then
  redis.call('HSET', 'ks:webhooks:messages', ARGV[1], cjson.encode(message))
  redis.call('ZADD', 'ks:webhooks', ARGV[4] + delay, ARGV[1])
else
  redis.call('HDEL', 'ks:webhooks:messages', ARGV[1])
  redis.call('ZREM', 'ks:webhooks', ARGV[1])
end
return outcome
