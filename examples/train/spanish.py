"""Generated Spanish: short stories, and translation tasks whose phrases agree in gender and number."""
from grammar import article, fill, pick
from tasks import operands, worked
from words import BOYS, GIRLS

# English: (Spanish singular, Spanish plural, gender)
NOUNS = {e: (s, p, g) for e, s, p, g in (x.split("/") for x in (
    "ball/pelota/pelotas/f house/casa/casas/f book/libro/libros/m dog/perro/perros/m cat/gato/gatos/m hat/sombrero/sombreros/m "
    "table/mesa/mesas/f chair/silla/sillas/f car/coche/coches/m door/puerta/puertas/f flower/flor/flores/f tree/árbol/árboles/m "
    "horse/caballo/caballos/m bird/pájaro/pájaros/m fish/pez/peces/m apple/manzana/manzanas/f boat/barco/barcos/m "
    "box/caja/cajas/f shirt/camisa/camisas/f shoe/zapato/zapatos/m star/estrella/estrellas/f key/llave/llaves/f "
    "cow/vaca/vacas/f spoon/cuchara/cucharas/f cup/taza/tazas/f bed/cama/camas/f window/ventana/ventanas/f "
    "pencil/lápiz/lápices/m bottle/botella/botellas/f clock/reloj/relojes/m duck/pato/patos/m frog/rana/ranas/f "
    "train/tren/trenes/m lamp/lámpara/lámparas/f ring/anillo/anillos/m coat/abrigo/abrigos/m stone/piedra/piedras/f "
    "letter/carta/cartas/f rabbit/conejo/conejos/m bell/campana/campanas/f").split())}
# English: Spanish masculine, feminine, and their plurals
ADJECTIVES = {e: (m, f, m2, f2) for e, m, f, m2, f2 in (x.split("/") for x in (
    "red/rojo/roja/rojos/rojas white/blanco/blanca/blancos/blancas black/negro/negra/negros/negras "
    "yellow/amarillo/amarilla/amarillos/amarillas green/verde/verde/verdes/verdes blue/azul/azul/azules/azules "
    "grey/gris/gris/grises/grises big/grande/grande/grandes/grandes small/pequeño/pequeña/pequeños/pequeñas "
    "new/nuevo/nueva/nuevos/nuevas old/viejo/vieja/viejos/viejas pretty/bonito/bonita/bonitos/bonitas "
    "clean/limpio/limpia/limpios/limpias dirty/sucio/sucia/sucios/sucias broken/roto/rota/rotos/rotas").split())}
NUMBERS = ("two dos three tres four cuatro five cinco six seis seven siete eight ocho nine nueve ten diez").split()
NUMBERS = dict(zip(NUMBERS[::2], NUMBERS[1::2]))


def plural(noun):
    """English plural of one of NOUNS."""
    return noun if noun == "fish" else noun + ("es" if noun[-1] in "sxh" else "s")


def is_held_out(noun, adjective):
    """One combination of noun and adjective in ten is kept for evaluation."""
    return (list(NOUNS).index(noun) * 7 + list(ADJECTIVES).index(adjective) * 3) % 10 == 4


def phrases(rng, held_out):
    """(English, Spanish) of a phrase or a sentence with one noun and one adjective that agrees with it."""
    while True:
        noun, adjective = pick(rng, list(NOUNS)), pick(rng, list(ADJECTIVES))
        if is_held_out(noun, adjective) == held_out:
            break
    one, many, gender = NOUNS[noun]
    f = gender == "f"
    adj, adjs = ADJECTIVES[adjective][f], ADJECTIVES[adjective][2 + f]
    el, un, los = ("la", "una", "las") if f else ("el", "un", "los")
    form = int(rng.random() * 6)
    if form == 0:
        return f"the {adjective} {noun}", f"{el} {one} {adj}"
    if form == 1:
        return article(f"{adjective} {noun}"), f"{un} {one} {adj}"
    if form == 2:
        return f"the {adjective} {plural(noun)}", f"{los} {many} {adjs}"
    if form == 3:
        n = pick(rng, list(NUMBERS))
        return f"{n} {adjective} {plural(noun)}", f"{NUMBERS[n]} {many} {adjs}"
    name = pick(rng, GIRLS + BOYS)
    if form == 4:
        return f"{name} has {article(f'{adjective} {noun}')}.", f"{name} tiene {un} {one} {adj}."
    return f"{name} sees the {adjective} {noun}.", f"{name} ve {el} {one} {adj}."


def to_spanish(rng, held_out):
    """English to Spanish."""
    english, spanish = phrases(rng, held_out)
    q = pick(rng, ("How do you say \"{}\" in Spanish?", "Translate into Spanish: {}", "What is \"{}\" in Spanish?"))
    return q.format(english), spanish


def to_english(rng, held_out):
    """Spanish to English."""
    english, spanish = phrases(rng, held_out)
    q = pick(rng, ("What does \"{}\" mean?", "Translate into English: {}", "What is \"{}\" in English?"))
    return q.format(spanish), english


def suma(rng, held_out):
    """A sum asked in Spanish."""
    sign = pick(rng, "+-")
    a, b = operands(rng, sign, held_out)
    word = {"+": "más", "-": "menos"}[sign]
    q = pick(rng, (f"¿Cuánto es {a} {word} {b}?", f"¿Cuántos son {a} {word} {b}?", f"Calcula {a} {sign} {b}.",
                   f"¿Cuánto es {a} {sign} {b}?"))
    return q, worked(a, sign, b) + "."


TASKS = {f.__name__: f for f in (to_spanish, to_english, suma)}

PEOPLE = {"f": "niña reina abuela princesa pastora maestra gata rana coneja tortuga hormiga".split(),
          "m": "niño rey abuelo príncipe pastor maestro gato pato conejo ratón zorro oso".split()}
PLACES = ("el bosque/la aldea/el campo/la playa/la montaña/el jardín/el río/la ciudad/el valle/la granja/el mercado/"
          "el parque/la isla/el castillo").split("/")
STORIES = [
    ["Un día, {n} fue a {p} con su {f}.",
     "Allí vio {un_o} {c_o}<, muy {b_o}|>.",
     "Preguntó: \"¿De quién es {el_o}?\" Nadie <respondió|dijo nada>.",
     "Entonces {m} dijo: \"Es {mio}. {Lo_o} perdí ayer.\" {n} se {lo_o} dio.",
     "\"Muchas gracias\", dijo {m}. Desde <ese|aquel> día, {n} y {m} <son|fueron> amigos."],
    ["{n} quería hacer {comida} para su {f}, pero no tenía <azúcar|leche|harina|sal>.",
     "Fue a la casa de {m} y llamó a la puerta.",
     "\"¿Me puedes ayudar?\", preguntó {n}. \"Claro que sí\", dijo {m}.",
     "Los dos trabajaron toda la <mañana|tarde>.",
     "Por la noche, todos comieron juntos y {n} estaba muy {contento}."],
    ["Era un día de <lluvia|viento|frío|mucho sol>. {n} no <sabía qué hacer|quería salir de casa>.",
     "De pronto, oyó una voz: \"¡Ayuda!\"",
     "{n} corrió a {p} y vio a {m}, que había perdido {un_o} {c_o}.",
     "Buscaron <detrás de|debajo de|cerca de> un árbol y no encontraron nada.",
     "Al fin, {n} miró en <el agua|la hierba|el camino>. ¡Allí estaba {el_o}!",
     "\"Eres muy {bueno}\", dijo {m}, y le dio un abrazo."],
    ["{n} tenía {un_o} {c_o}. <{Lo_o} llevaba siempre consigo|Era un regalo de su {f}>.",
     "Una mañana, {m} {lo_o} vio y dijo: \"¡Qué {b_o}!\"",
     "{n} pensó un momento. \"Podemos jugar juntos\", dijo.",
     "Jugaron en {p} hasta que se hizo de noche.",
     "Fue el mejor día de <su vida|la semana|todo el año>."],
    ["Cada noche, {n} <miraba|contaba> las estrellas. \"Quiero ir <allí|muy lejos>\", decía.",
     "Su {f} le dijo: \"Primero tienes que <dormir|aprender a leer|crecer>.\"",
     "{n} cerró los ojos y soñó con {p}.",
     "En el sueño, {m} le daba {un_o} {c_o}.",
     "Cuando despertó, {el_o} estaba sobre la <mesa|cama|silla>."],
    ["{n} y {m} querían saber quién era más <rápido|fuerte>.",
     "\"Vamos a correr hasta {p}\", dijo {n}.",
     "{m} salió primero, pero se paró a comer {comida}.",
     "{n} siguió <sin parar|paso a paso> y llegó antes.",
     "\"Has ganado\", dijo {m}. \"Toma {mi_o}.\" Y los dos <rieron|volvieron a casa contentos>."],
]
ENDINGS = ["Y colorín colorado, este cuento se ha acabado.", "Y vivieron felices para siempre.", "{n} <nunca olvidó aquel día|aprendió mucho aquel día>.",
           "Esa noche, {n} durmió muy bien.", "\"Hasta mañana\", dijo {m}."]
OPENINGS = ["Había una vez {un} {k} que se llamaba {n} y vivía en {p2}.", "Érase una vez {un} {k} {bueno}. Su nombre era {n}.",
            "En {p2} vivía {un} {k} que se llamaba {n}.", "{n} era {un} {k} muy {bueno} que vivía cerca de {p2}.",
            "Hace mucho tiempo, en {p2}, vivía {un} {k} {bueno} que se llamaba {n}."]
KINSHIP = ["madre/f", "padre/m", "abuela/f", "abuelo/m", "hermana/f", "hermano/m", "tía/f", "tío/m"]


def story(rng):
    """A story of six to nine sentences."""
    g = pick(rng, "fm")
    f = g == "f"
    name, other = rng.sample(GIRLS if f else BOYS, 2)
    other = pick(rng, (other, pick(rng, [n for n in GIRLS + BOYS if n != name])))
    one, _, gender = NOUNS[pick(rng, list(NOUNS))]
    fem = gender == "f"
    adjective = lambda names: ADJECTIVES[pick(rng, names)][fem]
    p, p2 = rng.sample(PLACES, 2)
    end = "a" if f else "o"
    slots = dict(
        n=name, m=other, p=p, p2=p2, un="una" if f else "un", k=pick(rng, PEOPLE[g]),
        f=pick(rng, KINSHIP).split("/")[0], contento="content" + end, mio="mía" if fem else "mío",
        bueno=pick(rng, ("buen", "list", "simpátic", "curios", "tranquil", "generos")) + end,
        c_o=adjective(("red", "white", "black", "yellow", "green", "blue", "grey", "big", "small", "new", "old")),
        b_o=adjective(("pretty", "new", "big", "small")), un_o=("una " if fem else "un ") + one, el_o=("la " if fem else "el ") + one,
        mi_o="mi " + one, lo_o="la" if fem else "lo", Lo_o="La" if fem else "Lo",
        comida=pick(rng, "pan/sopa/pasteles/queso/manzanas/uvas/peras/tortilla/arroz/miel/chocolate/galletas".split("/")))
    plot = [pick(rng, OPENINGS), *pick(rng, STORIES)] + ([pick(rng, ENDINGS)] if rng.random() < 0.7 else [])
    text = " ".join(fill(rng, t, slots) for t in plot)
    for wrong, right in (("de el ", "del "), ("a el ", "al ")):
        text = text.replace(" " + wrong, " " + right)
    return text
