"""Where the recordings come from, and which recordings the test parts of complete sets have."""

from __future__ import annotations

from spikelet.data.events.download import Archive

MENDELEY = "https://data.mendeley.com/public-files/datasets/{}/files/{}/file_downloaded"
FIGSHARE = (
    "https://api.figshare.com/v2/file/download/{}",
    "https://ndownloader.figshare.com/files/{}",
)
CIFAR10_DVS_PAGE = "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671"
GESTURE_PAGE = "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8"


def _mendeley(name: str, md5: str, dataset: str, file: str) -> Archive:
    page = f"https://data.mendeley.com/datasets/{dataset}/1"
    return Archive(name, md5, (MENDELEY.format(dataset, file),), page)


def _figshare(name: str, md5: str, number: int) -> Archive:
    urls = tuple(form.format(number) for form in FIGSHARE)
    return Archive(f"{name}.zip", md5, urls, CIFAR10_DVS_PAGE)


NMNIST = (
    _mendeley(
        "Train.zip",
        "20959b8e626244a1b502305a9e6e2031",
        "468j46mzdv",
        "39c25547-014b-4137-a934-9d29fa53c7a0",
    ),
    _mendeley(
        "Test.zip",
        "69ca8762b2fe404d9b9bad1103e97832",
        "468j46mzdv",
        "05a4d654-7e03-4c15-bdfa-9bb2bcbea494",
    ),
)
N_CALTECH101 = (
    _mendeley(
        "N-Caltech101-archive.zip",
        "66201824eabb0239c7ab992480b50ba3",
        "cy6cvx3ryv",
        "36b5c52a-b49d-4853-addb-a836a8883e49",
    ),
)
CIFAR10_DVS = (
    _figshare("airplane", "0afd5c4bf9ae06af762a77b180354fdd", 7712788),
    _figshare("automobile", "8438dfeba3bc970c94962d995b1b9bdd", 7712791),
    _figshare("bird", "a9c207c91c55b9dc2002dc21c684d785", 7712794),
    _figshare("cat", "52c63c677c2b15fa5146a8daf4d56687", 7712812),
    _figshare("deer", "b6bf21f6c04d21ba4e23fc3e36c8a4a3", 7712815),
    _figshare("dog", "f379ebdf6703d16e0a690782e62639c3", 7712818),
    _figshare("frog", "cad6ed91214b1c7388a5f6ee56d08803", 7712842),
    _figshare("horse", "e7cbbf77bec584ffbf913f00e682782a", 7712851),
    _figshare("ship", "41c7bd7d6b251be82557c6cce9a7d5c9", 7712836),
    _figshare("truck", "89f3922fd147d9aeff89e76a2b0b70a7", 7712839),
)
DVS_GESTURE = (Archive("DvsGesture.tar.gz", "8a5c71fb11e24e5ca5b11866ca6c00a1", (), GESTURE_PAGE),)

TEST_NAMES = {
    "cifar10-dvs": "0f4a9a8a98cce05490bc586b7c3297456321454dc822ffb2b14c8005e4d61d65",
    "n-caltech101": "8d6662f5aa3d4791c79ef1a20840e423eb38440b7a5b5621f7412744532b2414",
}
