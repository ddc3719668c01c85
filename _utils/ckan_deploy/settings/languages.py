"""Languages by the names that CKAN has for them, and the text of the maintenance page in those that we can write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckan_deploy.system import arguments

# Those of CKAN 2.10 to 2.12 (ckan/i18n), and English.
KNOWN = (
    "am ar bg bs ca cs_CZ da_DK de el en en_AU en_GB es es_AR eu fa_IR fi fr gl gl_ES he hr hu id is it ja km ko_KR lt "
    "lv mk mn_MN my_MM nb_NO ne ne_NP nl no pl pt_BR pt_PT ro ru sk sl sq sr sr_Latn sv th tl tr uk uk_UA vi "
    "zh_Hans_CN zh_Hant_TW"
).split()
RIGHT_TO_LEFT = ("ar", "fa_IR", "he")
# Heading, sentence, words before the expected end.
TEXTS: Mapping[str, tuple[str, str, str]] = {
    "en": (
        "We will be back soon", "This portal is being updated. Please try again in a few minutes.", "Expected end:",
    ),
    "ca": ("Tornem aviat", "El portal s’està actualitzant. Torneu-ho a provar d’aquí a uns minuts.", "Final previst:"),
    "cs_CZ": ("Brzy budeme zpět", "Portál se aktualizuje. Zkuste to prosím za několik minut.", "Očekávaný konec:"),
    "da_DK": ("Vi er snart tilbage", "Portalen opdateres. Prøv igen om få minutter.", "Forventet afslutning:"),
    "de": (
        "Wir sind bald wieder da", "Das Portal wird aktualisiert. Bitte versuchen Sie es in ein paar Minuten wieder.",
        "Voraussichtliches Ende:",
    ),
    "es": (
        "Volvemos pronto", "Este portal se está actualizando. Vuelva a intentarlo en unos minutos.",
        "Finalización prevista:",
    ),
    "fi": (
        "Palaamme pian", "Portaalia päivitetään. Yritä uudelleen muutaman minuutin kuluttua.", "Arvioitu päättyminen:",
    ),
    "fr": (
        "Nous revenons bientôt", "Ce portail est en cours de mise à jour. Veuillez réessayer dans quelques minutes.",
        "Fin prévue :",
    ),
    "it": (
        "Torniamo presto", "Questo portale è in aggiornamento. Riprovi tra qualche minuto.", "Fine prevista:",
    ),
    "nb_NO": ("Vi er snart tilbake", "Portalen oppdateres. Prøv igjen om noen minutter.", "Forventet slutt:"),
    "nl": (
        "We zijn zo terug", "Dit portaal wordt bijgewerkt. Probeer het over enkele minuten opnieuw.", "Verwacht einde:",
    ),
    "pl": (
        "Wkrótce wrócimy", "Portal jest właśnie aktualizowany. Proszę spróbować ponownie za kilka minut.",
        "Przewidywane zakończenie:",
    ),
    "pt_BR": (
        "Voltamos em breve", "Este portal está sendo atualizado. Tente novamente em alguns minutos.",
        "Término previsto:",
    ),
    "pt_PT": (
        "Voltamos em breve", "Este portal está a ser atualizado. Tente novamente dentro de alguns minutos.",
        "Fim previsto:",
    ),
    "sv": ("Vi är snart tillbaka", "Portalen uppdateras. Försök igen om några minuter.", "Beräknat slut:"),
    "uk": ("Ми скоро повернемося", "Портал оновлюється. Спробуйте ще раз за кілька хвилин.", "Очікуване завершення:"),
}  # fmt: skip
# Languages that read the text of another one.
SAME = {"en_AU": "en", "en_GB": "en", "es_AR": "es", "no": "nb_NO", "uk_UA": "uk"}


def texts(language: str) -> tuple[str, str, str] | None:
    """
    Return heading, sentence and the words before the expected end; None where nobody has translated them.

    language
        The name of CKAN's.
    """
    return TEXTS.get(SAME.get(language, language))


def problem(name: str, language: str) -> str:
    """
    Say why there is no such language, ``''`` where there is.

    name
        The setting or argument.
    language
        The name of CKAN's.
    """
    if language in KNOWN:
        return ""
    return f"{name} names the language {language!r}, which CKAN does not have{arguments.near(language, KNOWN)}"


def check(web: Mapping[str, Any], problems: list[str]) -> None:
    """
    Check the settings of the maintenance page that are about languages.

    web
        The settings of the group ``web``, by name.
    problems
        Gets a sentence for each thing that is wrong.
    """
    problems += filter(
        None, (problem("ckan:web:maintenance_languages", language) for language in web["maintenance_languages"])
    )
    for language, said in web["maintenance_message"].items():
        name = f"ckan:web:maintenance_message:{language}"
        if wrong := problem("ckan:web:maintenance_message", str(language)):
            problems.append(wrong)
        elif not isinstance(said, str) or not said.strip():
            problems.append(f"{name} must be text; put it in quotes in the pillar")
        elif web["maintenance_languages"] and language not in web["maintenance_languages"]:
            problems.append(f"{name} is for a language that ckan:web:maintenance_languages does not have; add it there")
    for language in web["maintenance_languages"]:
        if language in KNOWN and not texts(language) and language not in web["maintenance_message"]:
            problems.append(
                f"ckan:web:maintenance_languages names {language}, which the formula has no text in; write one under "
                f"ckan:web:maintenance_message:{language}"
            )
