# What is told of nginx's logs. Of the access log all, which are lines of JSON already.
/^\{/{
p
d
}
# Of the error log: who failed to shake hands or sent nothing, in the form of the
# access log; of troubles the message alone. Behind it stand the address, the request and its host,
# and what begins with "client" is somebody else's fault and in the access log.
s|^([0-9]+)/([0-9]+)/([0-9]+) ([0-9:]+) |\1-\2-\3T\4+00:00 |
t kind
:kind
s|^(\S+) \[[a-z]+\] [0-9#]+: \*[0-9]+ SSL_do_handshake\(\) failed[^,]* while SSL handshaking, client: ([0-9a-fA-F.:]+), .*|{"time":"\1","address":"\2","status":"","reason":"tls"}|
t tell
s|^(\S+) \[[a-z]+\] [0-9#]+: \*[0-9]+ client timed out [^,]* while (SSL handshaking\|waiting for request), client: ([0-9a-fA-F.:]+), .*|{"time":"\1","address":"\3","status":"","reason":"slow"}|
t tell
/^\S+ \[[a-z]+\] [0-9#]+: (\*[0-9]+ )?client /d
s/^(\S+) \[(warn|error|crit|alert|emerg)\] [0-9#]+: (\*[0-9]+ )?/\1 \2: /
t trouble
d
:trouble
s/, client: .*//
:tell
p
