"""What the pages say, in five languages, and which of them a browser prefers."""

from __future__ import annotations

import re
from typing import NamedTuple

LANGUAGES = ("en", "nl", "de", "fr", "es")
_MOST_RANGES = 30  # of an Accept-Language header that are looked at; browsers send a handful
_RANGE = re.compile(r"([a-z]{1,8}|\*)(?:-[a-z0-9-]+)?\s*(?:;\s*q=([01](?:\.\d{0,3})?))?", re.I)


class Message(NamedTuple):
    """The words of one page: what happened, what it means, and the one thing to do next."""

    title: str
    text: str
    action: str


def negotiate(accept_language: str | None) -> str:
    """Choose a language by an Accept-Language header (RFC 9110 §12.5.4); English if none fits.

    A region is of no account (``nl-BE`` is Dutch); among equals the first named wins.
    """
    best, best_q = "en", 0.0
    refused = set()
    for part in (accept_language or "").split(",", _MOST_RANGES)[:_MOST_RANGES]:
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            continue
        language, q = found[1].lower(), float(found[2] or 1)
        if q == 0:
            refused.add(language)
        elif q > best_q and (language in LANGUAGES or language == "*"):
            best, best_q = language, q
    if best != "*":
        return best
    return next((language for language in LANGUAGES if language not in refused), "en")


MESSAGES: dict[str, dict[str, Message]] = {
    "log_in": {
        "en": Message(
            "Please log in",
            "To use this application you need your CameraManager account.",
            "Log in with CameraManager",
        ),
        "nl": Message(
            "Log in",
            "Voor deze toepassing hebt u uw CameraManager-account nodig.",
            "Inloggen met CameraManager",
        ),
        "de": Message(
            "Bitte melden Sie sich an",
            "Für diese Anwendung benötigen Sie Ihr CameraManager-Konto.",
            "Mit CameraManager anmelden",
        ),
        "fr": Message(
            "Veuillez vous connecter",
            "Pour utiliser cette application, vous avez besoin de votre compte CameraManager.",
            "Se connecter avec CameraManager",
        ),
        "es": Message(
            "Inicie sesión",
            "Para usar esta aplicación necesita su cuenta de CameraManager.",
            "Iniciar sesión con CameraManager",
        ),
    },
    "log_out": {
        "en": Message(
            "Log out?",
            "You will be logged out of this application, and its access to your CameraManager "
            "account will end.",
            "Log out",
        ),
        "nl": Message(
            "Uitloggen?",
            "U wordt uitgelogd bij deze toepassing. Daarna heeft zij geen toegang meer tot uw "
            "CameraManager-account.",
            "Uitloggen",
        ),
        "de": Message(
            "Abmelden?",
            "Sie werden von dieser Anwendung abgemeldet. Danach hat sie keinen Zugriff mehr auf "
            "Ihr CameraManager-Konto.",
            "Abmelden",
        ),
        "fr": Message(
            "Se déconnecter ?",
            "Vous serez déconnecté de cette application, qui n’aura alors plus accès à votre "
            "compte CameraManager.",
            "Se déconnecter",
        ),
        "es": Message(
            "¿Cerrar sesión?",
            "Se cerrará su sesión en esta aplicación, que dejará de tener acceso a su cuenta de "
            "CameraManager.",
            "Cerrar sesión",
        ),
    },
    "signed_out": {
        "en": Message(
            "You are logged out",
            "Your session in this application has ended. CameraManager itself may still remember "
            "you in this browser.",
            "Log in again",
        ),
        "nl": Message(
            "U bent uitgelogd",
            "Uw sessie in deze toepassing is beëindigd. CameraManager zelf kan u in deze browser "
            "nog herkennen.",
            "Opnieuw inloggen",
        ),
        "de": Message(
            "Sie sind abgemeldet",
            "Ihre Sitzung in dieser Anwendung ist beendet. CameraManager selbst erkennt Sie in "
            "diesem Browser möglicherweise noch.",
            "Erneut anmelden",
        ),
        "fr": Message(
            "Vous êtes déconnecté",
            "Votre session dans cette application est terminée. Il se peut que CameraManager vous "
            "reconnaisse encore dans ce navigateur.",
            "Se reconnecter",
        ),
        "es": Message(
            "Ha cerrado la sesión",
            "Su sesión en esta aplicación ha terminado. Es posible que CameraManager todavía le "
            "recuerde en este navegador.",
            "Volver a iniciar sesión",
        ),
    },
    "login_cancelled": {
        "en": Message(
            "Login was cancelled",
            "CameraManager has not given this application access to your account.",
            "Try again",
        ),
        "nl": Message(
            "Het inloggen is geannuleerd",
            "CameraManager heeft deze toepassing geen toegang tot uw account gegeven.",
            "Opnieuw proberen",
        ),
        "de": Message(
            "Die Anmeldung wurde abgebrochen",
            "CameraManager hat dieser Anwendung keinen Zugriff auf Ihr Konto gewährt.",
            "Erneut versuchen",
        ),
        "fr": Message(
            "La connexion a été annulée",
            "CameraManager n’a pas accordé à cette application l’accès à votre compte.",
            "Réessayer",
        ),
        "es": Message(
            "Se canceló el inicio de sesión",
            "CameraManager no ha dado a esta aplicación acceso a su cuenta.",
            "Volver a intentarlo",
        ),
    },
    "login_stale": {
        "en": Message(
            "This login is no longer valid",
            "It was already used, took longer than ten minutes, or was started in another "
            "browser. Cookies have to be allowed for this site.",
            "Start again",
        ),
        "nl": Message(
            "Deze inlogpoging is niet meer geldig",
            "Ze is al gebruikt, duurde langer dan tien minuten of is in een andere browser "
            "begonnen. Cookies moeten voor deze site zijn toegestaan.",
            "Opnieuw beginnen",
        ),
        "de": Message(
            "Diese Anmeldung ist nicht mehr gültig",
            "Sie wurde bereits verwendet, hat länger als zehn Minuten gedauert oder wurde in "
            "einem anderen Browser begonnen. Cookies müssen für diese Website erlaubt sein.",
            "Neu beginnen",
        ),
        "fr": Message(
            "Cette connexion n’est plus valable",
            "Elle a déjà servi, a duré plus de dix minutes ou a été commencée dans un autre "
            "navigateur. Les cookies doivent être autorisés pour ce site.",
            "Recommencer",
        ),
        "es": Message(
            "Este inicio de sesión ya no es válido",
            "Ya se utilizó, duró más de diez minutos o se empezó en otro navegador. Las cookies "
            "deben estar permitidas para este sitio.",
            "Empezar de nuevo",
        ),
    },
    "login_invalid": {
        "en": Message(
            "Login did not work",
            "The answer that came from CameraManager was not valid.",
            "Try again",
        ),
        "nl": Message(
            "Inloggen is niet gelukt",
            "Het antwoord van CameraManager was niet geldig.",
            "Opnieuw proberen",
        ),
        "de": Message(
            "Die Anmeldung ist fehlgeschlagen",
            "Die Antwort von CameraManager war ungültig.",
            "Erneut versuchen",
        ),
        "fr": Message(
            "La connexion a échoué",
            "La réponse de CameraManager n’était pas valable.",
            "Réessayer",
        ),
        "es": Message(
            "No se pudo iniciar sesión",
            "La respuesta de CameraManager no era válida.",
            "Volver a intentarlo",
        ),
    },
    "login_unavailable": {
        "en": Message(
            "Login did not work",
            "CameraManager could not complete the login just now. Please try again in a moment.",
            "Try again",
        ),
        "nl": Message(
            "Inloggen is niet gelukt",
            "CameraManager kon het inloggen zojuist niet afronden. Probeer het zo dadelijk "
            "opnieuw.",
            "Opnieuw proberen",
        ),
        "de": Message(
            "Die Anmeldung ist fehlgeschlagen",
            "CameraManager konnte die Anmeldung gerade nicht abschließen. Bitte versuchen Sie es "
            "gleich noch einmal.",
            "Erneut versuchen",
        ),
        "fr": Message(
            "La connexion a échoué",
            "CameraManager n’a pas pu terminer la connexion. Veuillez réessayer dans un instant.",
            "Réessayer",
        ),
        "es": Message(
            "No se pudo iniciar sesión",
            "CameraManager no pudo completar el inicio de sesión. Vuelva a intentarlo dentro de "
            "un momento.",
            "Volver a intentarlo",
        ),
    },
    "login_not_kept": {
        "en": Message(
            "Login did not work",
            "This application cannot keep logins just now. Please try again in a moment.",
            "Try again",
        ),
        "nl": Message(
            "Inloggen is niet gelukt",
            "Deze toepassing kan op dit moment geen aanmeldingen bewaren. Probeer het zo dadelijk "
            "opnieuw.",
            "Opnieuw proberen",
        ),
        "de": Message(
            "Die Anmeldung ist fehlgeschlagen",
            "Diese Anwendung kann Anmeldungen gerade nicht speichern. Bitte versuchen Sie es "
            "gleich noch einmal.",
            "Erneut versuchen",
        ),
        "fr": Message(
            "La connexion a échoué",
            "Cette application ne peut pas enregistrer les connexions en ce moment. Veuillez "
            "réessayer dans un instant.",
            "Réessayer",
        ),
        "es": Message(
            "No se pudo iniciar sesión",
            "Esta aplicación no puede guardar inicios de sesión en este momento. Vuelva a "
            "intentarlo dentro de un momento.",
            "Volver a intentarlo",
        ),
    },
    "login_lost": {
        "en": Message(
            "Your login did not stick",
            "You logged in a moment ago, but your browser did not bring the session back. Cookies "
            "may be blocked for this site, or another application on this host uses the same "
            "cookie name.",
            "Try again",
        ),
        "nl": Message(
            "Uw aanmelding is niet bewaard",
            "U hebt zojuist ingelogd, maar uw browser heeft de sessie niet teruggestuurd. Cookies "
            "zijn misschien geblokkeerd voor deze site, of een andere toepassing op deze host "
            "gebruikt dezelfde cookienaam.",
            "Opnieuw proberen",
        ),
        "de": Message(
            "Ihre Anmeldung blieb nicht erhalten",
            "Sie haben sich gerade angemeldet, aber Ihr Browser hat die Sitzung nicht "
            "zurückgesendet. Vielleicht sind Cookies für diese Website blockiert, oder eine andere "
            "Anwendung auf diesem Host verwendet denselben Cookie-Namen.",
            "Erneut versuchen",
        ),
        "fr": Message(
            "Votre connexion n’a pas été conservée",
            "Vous venez de vous connecter, mais votre navigateur n’a pas renvoyé la session. Les "
            "cookies sont peut-être bloqués pour ce site, ou une autre application de cet hôte "
            "utilise le même nom de cookie.",
            "Réessayer",
        ),
        "es": Message(
            "Su sesión no se conservó",
            "Acaba de iniciar sesión, pero su navegador no devolvió la sesión. Puede que las "
            "cookies estén bloqueadas para este sitio o que otra aplicación de este servidor use "
            "el mismo nombre de cookie.",
            "Volver a intentarlo",
        ),
    },
    "denied": {
        "en": Message(
            "You have no access",
            "Your CameraManager account is not allowed to use this application. If it should be, "
            "please ask whoever runs it. To use another account, log out at CameraManager first.",
            "Log in again",
        ),
        "nl": Message(
            "U hebt geen toegang",
            "Uw CameraManager-account mag deze toepassing niet gebruiken. Klopt dat niet, neem dan "
            "contact op met de beheerder. Log eerst uit bij CameraManager om een ander account te "
            "gebruiken.",
            "Opnieuw inloggen",
        ),
        "de": Message(
            "Sie haben keinen Zugang",
            "Ihr CameraManager-Konto darf diese Anwendung nicht verwenden. Falls das nicht stimmt, "
            "wenden Sie sich bitte an den Betreiber. Um ein anderes Konto zu verwenden, melden Sie "
            "sich zuerst bei CameraManager ab.",
            "Erneut anmelden",
        ),
        "fr": Message(
            "Vous n’avez pas accès",
            "Votre compte CameraManager n’est pas autorisé à utiliser cette application. S’il "
            "devait l’être, adressez-vous à son responsable. Pour utiliser un autre compte, "
            "déconnectez-vous d’abord de CameraManager.",
            "Se reconnecter",
        ),
        "es": Message(
            "No tiene acceso",
            "Su cuenta de CameraManager no está autorizada a usar esta aplicación. Si debería "
            "estarlo, consulte con el responsable. Para usar otra cuenta, cierre primero la sesión "
            "en CameraManager.",
            "Iniciar sesión de nuevo",
        ),
    },
    "unavailable": {
        "en": Message(
            "CameraManager cannot be reached",
            "You are still logged in. Please try again in a moment.",
            "Try again",
        ),
        "nl": Message(
            "CameraManager is niet bereikbaar",
            "U bent nog ingelogd. Probeer het zo dadelijk opnieuw.",
            "Opnieuw proberen",
        ),
        "de": Message(
            "CameraManager ist nicht erreichbar",
            "Sie sind weiterhin angemeldet. Bitte versuchen Sie es gleich noch einmal.",
            "Erneut versuchen",
        ),
        "fr": Message(
            "CameraManager est injoignable",
            "Vous êtes toujours connecté. Veuillez réessayer dans un instant.",
            "Réessayer",
        ),
        "es": Message(
            "No se puede acceder a CameraManager",
            "Su sesión sigue abierta. Vuelva a intentarlo dentro de un momento.",
            "Volver a intentarlo",
        ),
    },
    "store_unavailable": {
        "en": Message(
            "This application has a problem just now",
            "It cannot look up logins at the moment; yours is not lost. Please try again in a "
            "moment.",
            "Try again",
        ),
        "nl": Message(
            "Deze toepassing heeft een storing",
            "Aanmeldingen kunnen op dit moment niet worden opgezocht; die van u is niet verloren. "
            "Probeer het zo dadelijk opnieuw.",
            "Opnieuw proberen",
        ),
        "de": Message(
            "Diese Anwendung hat gerade eine Störung",
            "Anmeldungen können im Moment nicht nachgeschlagen werden; Ihre ist nicht verloren. "
            "Bitte versuchen Sie es gleich noch einmal.",
            "Erneut versuchen",
        ),
        "fr": Message(
            "Cette application rencontre un problème",
            "Elle ne peut pas consulter les sessions en ce moment ; la vôtre n’est pas perdue. "
            "Veuillez réessayer dans un instant.",
            "Réessayer",
        ),
        "es": Message(
            "Esta aplicación tiene un problema",
            "En este momento no puede consultar las sesiones; la suya no se ha perdido. Vuelva a "
            "intentarlo dentro de un momento.",
            "Volver a intentarlo",
        ),
    },
    "unknown_host": {
        "en": Message(
            "This host name is not configured",
            "The application does not accept logins under this address. Whoever runs it can add "
            "the host name to allowed_hosts, or set redirect_uri.",
            "Try again",
        ),
        "nl": Message(
            "Deze hostnaam is niet geconfigureerd",
            "De toepassing accepteert op dit adres geen aanmeldingen. De beheerder kan de hostnaam "
            "aan allowed_hosts toevoegen of redirect_uri instellen.",
            "Opnieuw proberen",
        ),
        "de": Message(
            "Dieser Hostname ist nicht konfiguriert",
            "Die Anwendung nimmt unter dieser Adresse keine Anmeldungen an. Der Betreiber kann den "
            "Hostnamen in allowed_hosts aufnehmen oder redirect_uri setzen.",
            "Erneut versuchen",
        ),
        "fr": Message(
            "Ce nom d’hôte n’est pas configuré",
            "L’application n’accepte pas de connexions à cette adresse. Son responsable peut "
            "ajouter le nom d’hôte à allowed_hosts ou définir redirect_uri.",
            "Réessayer",
        ),
        "es": Message(
            "Este nombre de host no está configurado",
            "La aplicación no admite inicios de sesión en esta dirección. El responsable puede "
            "añadir el nombre de host a allowed_hosts o definir redirect_uri.",
            "Volver a intentarlo",
        ),
    },
}
"""The pages, by kind and language. The kinds are stable: an ``error_handler`` may tell by them."""
