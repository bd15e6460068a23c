"""Every private corner of Flower that is touched, and every work-around for it, in one package.

Made and tested for Flower 1.41. The first lines of each file say what Flower does, what is done
here and what happens without it. No other file imports what Flower keeps to itself
(``flwr.supercore``, ``flwr.superlink``, ``flwr.supernode``, ``flwr.proto``, ``flwr.cli`` and
``flwr.common`` but for its logger), so a new version of Flower is answered for here.

==============  ====================================================================================
messages        a message's size, id and sender outside Flower's runtime
replies         what a reply must be to be taken as the answer to a request
grid            a deployment's grid that takes replies object by object and sends requests again
inline          a federation inside this process, without Ray
command         runs submitted, followed and stopped through the `flwr` command
app             the app without the thousand files around it, and its digest
superlink       a SuperLink of one's own for one run, and nothing left of it
ray_head        Ray for one simulation, started beside the SuperLink
supervisor      the process that ends all that such a SuperLink has started
supernode       a site's SuperNode that ends when a part of it has died
node_guard      what a site's SuperNode checks: the app, whole replies, lost messages
==============  ====================================================================================
"""
