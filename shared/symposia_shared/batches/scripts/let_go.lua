-- Lets a batch go, if this driver holds it. KEYS[1] its hash; ARGV[1] the driver.
if redis.call('HGET', KEYS[1], 'own') == ARGV[1] then redis.call('HDEL', KEYS[1], 'own', 'until') end
return 1
