-- Records jobs. Per job: id, kind, spec, deadline_ms, bytes of the longest prompt, models (joined by a newline), '1' if it is of one turn,
-- and what each model must be able to do (joined by a newline; 'a|b': either).
-- Such a job's round is opened here; anything else waits in 'advance' for the coordinator. Answers one line per job.
local out = {}

-- The first need that a placement's capabilities do not meet; what a pool has not said of a checkpoint is not held against it.
local function unmet(place, needs)
  if type(place.capabilities) ~= 'table' then return nil end
  local can = {}
  for _, word in ipairs(place.capabilities) do can[word] = true end
  for need in string.gmatch(needs, '[^\n]+') do
    local met = false
    for word in string.gmatch(need, '[^|]+') do met = met or can[word] end
    if not met then return need end
  end
end

for k = 1, #ARGV, 8 do
  local job, kind, spec, deadline, bytes = ARGV[k], ARGV[k + 1], ARGV[k + 2], tonumber(ARGV[k + 3]), tonumber(ARGV[k + 4])
  local refused, queue = nil, nil
  for model in string.gmatch(ARGV[k + 5], '[^\n]+') do
    local where = redis.call('HGET', P .. 'placed', string.sub(model, 1, 5) == 'test/' and 'test/*' or model)
    if not where then refused = 'unplaced ' .. model break end
    local place = cjson.decode(where)
    local bounded = type(place.context) == 'number' and type(place.longest_token_bytes) == 'number'
    if bounded and bytes > place.context * place.longest_token_bytes then
      refused = 'toolong ' .. place.context .. ' ' .. place.longest_token_bytes .. ' ' .. model break
    end
    local need = unmet(place, ARGV[k + 7])
    if need then refused = 'unable ' .. need .. ' ' .. model break end
    queue = place.queue
  end
  if refused then out[#out + 1] = refused
  elseif redis.call('EXISTS', J(job)) == 1 or redis.call('ZSCORE', P .. 'ended', job) then out[#out + 1] = 'exists'
  else
    redis.call('HSET', J(job), 'st', 'open', 'k', kind, 'sp', spec, 'cur', -1, 'at', now, 'dl', now + deadline)
    redis.call('ZADD', P .. 'jobs', now, job)
    count('jobs_submitted')
    if ARGV[k + 6] == '1' then open(job, 0, now + deadline, 0, 0, '0', '', {queue, '', '0'})
    else redis.call('ZADD', P .. 'advance', now, job) end
    out[#out + 1] = 'ok ' .. queue
  end
end
return out
