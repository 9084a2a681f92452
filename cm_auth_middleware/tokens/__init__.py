"""How are tokens fetched, refreshed once, shared, and ended?

The theory of the refresh, which `refresh` and `grant_records` carry out
=======================================================================

A **grant** is what one user allows this application: an access token, which is good for hours, and
a refresh token, which gets the next access token. CameraManager gives the same grant to each login
of one user, so several sessions may hold it. It kills the old access token at each refresh, may
replace (rotate) the refresh token, and may then punish the use of an old refresh token by ending
the grant. The new tokens exist only in its response. Hence the rules:

Rule 1: one refresh for each expiry.
    Within an event loop, or among the threads of a process, all requests of a session join one
    call (``single_flight``), and so do all sessions of a grant that hold the same access token.
    A server's threads are few: only one of a process waits for longer than a second, or while the
    token endpoint is known to hang. The others raise `UnavailableError`.
    Beyond that a **lease** in the store decides who may refresh: only
    its holder calls the token endpoint. A lease lasts for the timeout of a token call and 5 s
    more, is renewed at each third of that, and ends by itself if its holder dies. A process that
    does not get it looks into the store for the tokens that the holder saves, first after 25 ms,
    then ever more seldom, at last four times a second; once a second it asks for the lease again.

    Where a server gives the same access token again as long as it lives, a refresh before its
    expiry is of no use: the tokens that such an answer makes are due when they expire
    (``refresh_at`` is ``expires_at``). By that the other processes know them from those that they
    hold, and do not ask, too. They are not kept for a failover: the server would give them again.

Rule 2: a process that holds the refresh token finds the newest tokens.
    The holder saves new tokens in the **record of the grant**, under a hash of the refresh token
    that its session held, encrypted with a key derived from it. A rotated refresh token leads to
    the next record. A session that slept through many refreshes follows this chain and needs no
    refresh of its own. Should a server give an earlier refresh token again, the chain is a circle:
    the tokens in it that expire last are the newest.

Rule 3: look again after each wait.
    The holder looks into the store after it got the lease, before it ends the grant because of a
    refusal, and before it saves. If another process has saved newer tokens in the meantime, those
    count. If the holder may have stood still for longer than its lease, it waits for the lease
    again before it looks after a refusal, and asks for it before it saves.

Rule 4: a failure is shared.
    The holder writes a refusal or an outage into the record. Processes that were waiting compare
    it with what they saw when they began to wait, and end in the same way without a call.

    A refusal is not believed at once where the server had rotated the refresh token: some servers
    answer with a new one that they do not know (Spring Security OAuth with a token enhancer). The
    one before it, `Tokens.former_refresh_token`, is tried once, after the look of rule 3.

Rule 5: a logout wins.
    It is marked under a key of its own, without the lease: a logout waits for no refresh. The mark
    is set first, then the session and the record are deleted, then the grant is revoked. A refresh
    under way compares the mark with the one before its call, and revokes its new tokens; tokens
    are written only into a session that still exists. So either the logout sees the new tokens and
    revokes them, or the refresh sees the logout and revokes them.

Rule 6: no failure ends a session.
    An outage, a full store or a refused API key end none. What does: a refusal of the refresh token
    that counts (see `provider`) or of an access token without one, a logout, another user's login
    in the same browser, a timeout, and the application (``allow``, ``logout_user``).

The keys in the store
---------------------

=====================  =====================================  ====================================
key                    value                                  written by
=====================  =====================================  ====================================
<hash of session id>   the session, with its tokens           a login; then `SessionManager.update`
grant.<hash>           newest tokens, last failure            the lease's holder; a login
gone.grant.<hash>      random: the grant was logged out       a logout; a login deletes it
gone.<session>         an administrator ended the session     `logout_user`
lease.grant.<hash>     (claimed lease) one refresh            a refresh
epoch.<epoch>          who has not put tokens back yet        `failovers`
keepers                processes that may keep tokens         `failovers`
refused.<session>      some path refuses living tokens        a 401 to a new token
denied.<session>       ``allow`` ended the session            `auth.revalidation`
user.<session>         (lease) one reading of the user        `auth.revalidation`
<name of a cookie>     (lease) a login that was used          `auth.login`
=====================  =====================================  ====================================

If the process dies
-------------------

- before the token call: the lease runs out, and another process refreshes 3.5 s later.
- during the call: the same. Without rotation nothing is lost. With rotation the refresh token may
  be used up already: then it is refused, and the user logs in again.
- after the call, before the record is saved: the same.
- after the record is saved, before the session is: the next request finds the record (rule 2).
- in a logout, after the mark: a refresh under way still revokes; without one the session lives on,
  for the browser was not told otherwise.
- in a logout, after the session is deleted: the tokens live at CameraManager until they expire,
  and no cookie opens them.

If the store fails after the call, saving is repeated for 15 s; then the tokens stay in this
process, which saves them as soon as the store takes them. It does not give the lease back before.
Its lease may run out meanwhile, and another process may reach the store first, or may have been
idle and know of no outage. So the stores tell a lease that ran out from one that was given back
(`TellsLapsedLeases`): such a lease is taken 3.5 s after that was seen. Until then its owner may
save what it has, which the other process looks for.

If the store loses what it has acknowledged
-------------------------------------------

A replica that takes its primary's place has not got everything: replication is asynchronous. Then
the store has the old refresh token again, and its second use may end the grant. So a process keeps
the tokens that it fetched for a minute (`kept_tokens`), and puts them back. The others have to wait
for that, though they cannot know what was lost (`failovers`):

- The store names the **epoch** of a server (`HasEpochs`): another one begins when a replica is
  promoted, or a server starts again. Redis has such a name, its replication id.
- Processes that are used enter themselves among the **keepers**, in the store, beforehand. Each
  looks at the epochs twice a second.
- Whoever sees a new epoch first notes it in the store, with all keepers. Each of these puts back
  what was lost, waits for its own token calls under way, and then takes its name away.
- Before each token call, a process looks if the epoch of the server that has the record is
  **settled**: no name is left. If not, it gives the lease back, which others need, and waits: for
  4.5 s, then the request is answered with 503. Processes that show no sign of life for 3 s are no
  longer waited for.
- Before it fetches tokens it takes its own, if they came in the place of those that are held now.

Tokens are put back under the lease of their refresh token, only in the place of those that they
replaced, and not after a logout. Sessions are not: they lead to the record of the grant (rule 2).

What remains: the process that fetched the tokens ends together with the primary, or is cut off from
the store for longer than 3 s; it was first used after the last moment that the new primary has.
Other changes that were lost (a login, `session.data`) stay lost, and so does a logout: its tokens
are revoked at CameraManager, if that could be reached.

Of a store without epochs none of this is known. With any store, a process that saw it fail
refreshes nothing for 0.8 s: another one may be about to save what it could not.
"""
