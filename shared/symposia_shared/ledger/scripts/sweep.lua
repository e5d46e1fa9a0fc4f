-- What nobody came back for. ARGV[1] '1': leases may be declared lost. ARGV[2]: milliseconds a closed round may wait for its advance.
-- Answers {jobs to advance, 'job|round' whose turns wait to be released}; each is stamped, so that of several sweepers one takes it.
frees()
wake()
for _, job in ipairs(redis.call('ZRANGEBYSCORE', P .. 'later', '-inf', now, 'LIMIT', 0, 200)) do begin(job) end
-- where the clock was set back, a lease would last as long as it was set back by
for _, m in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', now + 60000, '+inf', 'LIMIT', 0, 500)) do
  redis.call('ZADD', P .. 'leases', now + 10000, m)
end
if ARGV[1] == '1' then
  for _, m in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, 500)) do
    local job, r, i = split(m)
    local at = r .. ':' .. i
    local v = redis.call('HMGET', J(job), 't:' .. at, 'qn:' .. at)
    redis.call('ZREM', P .. 'leases', m)
    if v[1] and string.sub(v[1], 1, 2) == 'l:' then
      enqueue(job, r, i, v[2], 'q:' .. string.sub(v[1], 3))
      count('in_flight_at_kills')
    end
  end
end
for _, m in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadlines', '-inf', now, 'LIMIT', 0, 500)) do
  local job, r = split(m)
  if close(job, r, 'deadline') ~= 'won' then redis.call('ZREM', P .. 'deadlines', m) end
end
local due = redis.call('ZRANGEBYSCORE', P .. 'advance', '-inf', now - tonumber(ARGV[2]), 'LIMIT', 0, 200)
local out = {}
for _, job in ipairs(due) do
  if redis.call('EXISTS', J(job)) == 1 then
    redis.call('ZADD', P .. 'advance', now, job)
    out[#out + 1] = job
  else
    redis.call('ZREM', P .. 'advance', job)
  end
end
for _, m in ipairs(redis.call('ZRANGEBYSCORE', P .. 'follow', '-inf', now - tonumber(ARGV[2]), 'LIMIT', 0, 200)) do
  redis.call('ZADD', P .. 'follow', now, m)
  out[#out + 1] = m
end
return out
