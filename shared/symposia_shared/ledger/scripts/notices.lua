-- Notices are made, each once by its id, and what was wished of a job is done with. ARGV: job or '', then per notice: id, its JSON.
local job = ARGV[1]
for k = 2, #ARGV, 2 do
  local id = ARGV[k]
  if redis.call('EXISTS', P .. 'notice:' .. id) == 0 then
    redis.call('HSET', P .. 'notice:' .. id, 'b', ARGV[k + 1], 'st', 'waiting', 'n', 0, 'at', now, 'since', now)
    redis.call('ZADD', P .. 'notices', now, id)
    redis.call('ZADD', P .. 'told', now, id)
    if job ~= '' then redis.call('SADD', P .. 'notices:' .. job, id) end
    count('notices_made')
  end
end
if job ~= '' then
  redis.call('ZREM', P .. 'tellings', job)
  redis.call('UNLINK', P .. 'tell:' .. job)
end
return #ARGV
