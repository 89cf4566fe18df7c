(* Layers 18-21: the life of VMs. One function, [step]: the state, a call, the new state and the answer.
   Memory changes only by the transitions of Pages.v. Names are those of the Rust specification: src/spec/vm.rs.
   Calls that take steps are one step here: a caller makes them until they are decided. *)
Require Import NArith ZArith List Bool.
Require Import Pages.
Import ListNotations.
Local Open Scope N_scope.

(* There is no such VM -> Ready -> Verified -> PowerOff -> there is no such VM. *)
Inductive VmState := Ready | Verified | PowerOff.

(* Power of a vCPU: never started; starts next at this address with this x0; on; off. *)
Inductive Power := Never | Pending (pc x0 : N) | On | Off.

Record Vcpu := mkVcpu { mailbox : N; active : bool; power : Power }.
Record Image := mkImage { first : N; bytes : N; loaded : N }.

(* What of a VM is not memory. *)
Record Life := mkLife {
  vm_state : VmState;
  vcpus : Map Vcpu;
  images : list Image;
  entry : N * N;        (* entry point and x0 of the manifest that it was checked against *)
  cntvoff : N;
}.

Record Lives := mkLives {
  memory : State;
  lives : Map Life;
  gicv : N * N;                     (* the GIC's virtual CPU interface: first page, pages *)
  registers : N -> N -> N;          (* VM, vCPU -> all its registers, as one number *)
}.

(* A machine that was switched on. *)
Definition boot_lives ram windows bits gicv : Lives := mkLives (boot ram windows bits) empty gicv (fun _ _ => 0).

Record Manifest := mkManifest { authentic : bool; manifest_entry : N * N }.

Inductive CallError :=
| InvalidParameter | NoSuchObject | WrongState | E_NotOwner | E_InUse | E_Occupied | NoSpace | E_Busy | NotAuthentic.

Inductive Start := Resume | Psci (pc x0 : N) | FromManifest (pc x0 : N) | Mailbox.
Inductive Answer := Nothing | Number (n : N) | Starts (how : Start) | PsciResult (x0 : Z).

Inductive Call :=
(* of the host *)
| RegisterVm (protected : bool) (bits root : N)
| RegisterVcpu (vm vcpu mailbox : N)
| DonatePool (vm pfn pages : N)
| SetBootInfo (vm gfn size : N)
| RemapImagePage (vm image pfn : N)
| VerifyVm (vm : N) (manifest : option Manifest)
| MapMemory (vm gfn pfn pages : N)
| UnmapMemory (vm gfn pages : N)
| MapIo (vm gfn pfn pages : N)
| SetCntvoff (vm offset : N)
| Activate (vm vcpu : N)
| PowerOffVm (vm : N)
| ReclaimVm (vm : N)
| DestroyVm (vm : N)
(* of the core, when a vCPU was started, and when it is left *)
| Started (vm vcpu : N)
| Leave (vm vcpu : N)
(* of a VM *)
| CpuOn (vm target pc context : N)
| CpuOff (vm vcpu : N)
| AffinityInfo (vm target : N).

Definition error_of (d : Denied) : CallError :=
  match d with
  | NotDescribed | PageZero | NotOwner => E_NotOwner
  | InUse => E_InUse
  | Occupied => E_Occupied
  | NoSuchVm => NoSuchObject
  | WrongKind => WrongState
  | Misaligned | OutOfRange => InvalidParameter
  | Busy => E_Busy
  end.

Definition Outcome := Result CallError (Lives * Answer).

(* ---- reading and writing ------------------------------------------------------------------------------------------ *)

Definition with_memory s m := mkLives m (lives s) (gicv s) (registers s).
Definition set_life s v l := mkLives (memory s) (set (lives s) v l) (gicv s) (registers s).
Definition with_state l x := mkLife x (vcpus l) (images l) (entry l) (cntvoff l).
Definition with_vcpus l x := mkLife (vm_state l) x (images l) (entry l) (cntvoff l).
Definition with_images l x := mkLife (vm_state l) (vcpus l) x (entry l) (cntvoff l).
Definition with_entry l x := mkLife (vm_state l) (vcpus l) (images l) x (cntvoff l).
Definition with_cntvoff l x := mkLife (vm_state l) (vcpus l) (images l) (entry l) x.

(* The memory's transition, with its error as the host sees it. *)
Definition in_memory (s : Lives) (r : Result Denied State) : Result CallError Lives :=
  match r with Done m => Done (with_memory s m) | Refused why => Refused (error_of why) end.

Definition same_state (a b : VmState) : bool :=
  match a, b with Ready, Ready | Verified, Verified | PowerOff, PowerOff => true | _, _ => false end.

(* The VM, in one of these states. *)
Definition find (s : Lives) (v : N) (states : list VmState) : Result CallError (Vm * Life) :=
  match get (vms (memory s)) v, get (lives s) v with
  | Some vm, Some l => check existsb (same_state (vm_state l)) states else WrongState in Done (vm, l)
  | _, _ => Refused NoSuchObject
  end.

Definition all_states := [Ready; Verified; PowerOff].
Definition built := [Ready; Verified].

Definition find_vcpu (l : Life) (c : N) : Result CallError Vcpu :=
  match get (vcpus l) c with Some x => Done x | None => Refused NoSuchObject end.

Definition is_protected (vm : Vm) : bool := match kind vm with Protected => true | Ordinary => false end.
Definition is_running (l : Life) : bool := existsb (fun e => active (snd e)) (entries (vcpus l)).
Definition has_ram (vm : Vm) : bool :=
  existsb (fun e => match snd e with Ram _ => true | Window _ => false end) (entries (table vm)).

Definition pages_of (size : N) : N := (size + 4095) / 4096.
Definition complete (i : Image) : bool := loaded i =? pages_of (bytes i).
Definition has (vm : Vm) (gfn n : N) : bool := negb (n =? 0) && (gfn + n <=? size vm).
Definition meets (gfn n : N) (i : Image) : bool := (first i <? gfn + n) && (gfn <? first i + pages_of (bytes i)).

(* Pages of a run that one call does: up to the next 2 MiB if both sides come to it together, and at most 2 MiB. *)
Definition run_of (gfn pfn n : N) : N :=
  let most := N.min n 512 in
  if gfn mod 512 =? pfn mod 512 then N.min most (512 - gfn mod 512) else most.

(* [act] for each of [left] pages from [n] on, until one is refused; an error only if it is the first. *)
Fixpoint until_refused (left : nat) (n : N) (act : N -> State -> Result Denied State) (m : State)
  : Result Denied (State * N) :=
  match left with
  | O => Done (m, n)
  | S more =>
    match act n m with
    | Done m' => until_refused more (n + 1) act m'
    | Refused why => if n =? 0 then Refused why else Done (m, n)
    end
  end.

Definition many (s : Lives) (n : N) (act : N -> State -> Result Denied State) : Outcome :=
  match until_refused (N.to_nat n) 0 act (memory s) with
  | Done (m, done) => Done (with_memory s m, Number done)
  | Refused why => Refused (error_of why)
  end.

(* The first free id. *)
Definition free_id (s : Lives) : option N :=
  List.find (fun v => match get (vms (memory s)) v, get (lives s) v with None, None => true | _, _ => false end) (run 1 127).

Definition take_back_or_not (s : State) (v gfn : N) : State :=
  match take_back s v gfn with Done s' => s' | Refused _ => s end.
Definition let_go (s : State) (p : N) : State := match drop_mailbox s p with Done s' => s' | Refused _ => s end.

Definition set_image (l : list Image) (n : nat) (i : Image) : list Image := firstn n l ++ i :: skipn (S n) l.

(* ---- calls -------------------------------------------------------------------------------------------------------- *)

Definition register_vm s (protected : bool) bits root : Outcome :=
  match free_id s with
  | None => Refused NoSpace
  | Some v =>
    let k := if protected then Protected else Ordinary in
    let! s' := in_memory s (register_vm_table (memory s) v k bits root) in
    Done (set_life s' v (mkLife Ready empty [] (0, 0) 0), Number v)
  end.

Definition register_vcpu s v c p : Outcome :=
  check c <? 16 else NoSuchObject in
  let! found := find s v [Ready] in
  match get (vcpus (snd found)) c with
  | Some _ => Refused WrongState
  | None =>
    let! s' := in_memory s (hold_mailbox (memory s) p) in
    Done (set_life s' v (with_vcpus (snd found) (set (vcpus (snd found)) c (mkVcpu p false Never))), Nothing)
  end.

Definition donate_pool s v p n : Outcome :=
  let! _ := find s v built in
  if n =? 0 then Refused InvalidParameter else
  many s (N.min n 512) (fun k m => donate_pool_page m v (p + k)).

Definition set_boot_info s v gfn size : Outcome :=
  let! found := find s v [Ready] in
  check is_protected (fst found) else WrongState in
  check has (fst found) gfn (pages_of size) else InvalidParameter in
  let known := images (snd found) in
  if existsb (meets gfn (pages_of size)) known then Refused InvalidParameter else
  check N.of_nat (length known) <? 5 else NoSpace in
  Done (set_life s v (with_images (snd found) (known ++ [mkImage gfn size 0])), Number (N.of_nat (length known))).

Definition remap_image_page s v image p : Outcome :=
  let! found := find s v [Ready] in
  check is_protected (fst found) else WrongState in
  match nth_error (images (snd found)) (N.to_nat image) with
  | None => Refused NoSuchObject
  | Some i =>
    if complete i then Refused WrongState else
    let! s' := in_memory s (assign (memory s) v (first i + loaded i) p false) in
    let i' := mkImage (first i) (bytes i) (loaded i + 1) in
    Done (set_life s' v (with_images (snd found) (set_image (images (snd found)) (N.to_nat image) i')), Nothing)
  end.

Definition verify_vm s v (manifest : option Manifest) : Outcome :=
  let! found := find s v [Ready] in
  let l := snd found in
  match is_protected (fst found), manifest with
  | false, None => Done (set_life s v (with_state l Verified), Nothing)
  | true, Some m =>
    match images l with
    | [] => Refused WrongState
    | _ =>
      check forallb complete (images l) else WrongState in
      check authentic m else NotAuthentic in
      Done (set_life s v (with_state (with_entry l (manifest_entry m)) Verified), Nothing)
    end
  | _, _ => Refused InvalidParameter
  end.

(* Where a VM has memory: from 1 GiB to 256 GiB. Everything else is devices, and a protected VM's stay devices; nor does it get a window where it has memory. *)
Definition is_memory (gfn n : N) : bool := (262144 <=? gfn) && (gfn + n <=? 67108864).

Definition is_devices (gfn n : N) : bool := (gfn + n <=? 262144) || (67108864 <=? gfn).

Definition map_memory s v gfn p n : Outcome :=
  let! found := find s v built in
  check has (fst found) gfn n else InvalidParameter in
  check negb (is_protected (fst found)) || is_memory gfn n else InvalidParameter in
  let one k m := if is_protected (fst found) then assign m v (gfn + k) (p + k) true else lend m v (gfn + k) (p + k) in
  many s (run_of gfn p n) one.

Definition unmap_memory s v gfn n : Outcome :=
  let! found := find s v built in
  if is_protected (fst found) then Refused WrongState else
  check has (fst found) gfn n else InvalidParameter in
  let most := N.min n 512 in
  Done (with_memory s (fold_left (fun m g => take_back_or_not m v g) (run gfn most) (memory s)), Number most).

Definition map_io s v gfn p n : Outcome :=
  let! found := find s v [Ready] in
  check has (fst found) gfn n else InvalidParameter in
  check negb (is_protected (fst found)) || is_devices gfn n else InvalidParameter in
  check (fst (gicv s) <=? p) && (p + n <=? fst (gicv s) + snd (gicv s)) else E_NotOwner in
  many s n (fun k m => map_vm_io m v (gfn + k) (p + k)).

(* An ordinary VM's clock may be set later too. *)
Definition set_cntvoff s v offset : Outcome :=
  let! found := find s v built in
  if is_protected (fst found) && same_state (vm_state (snd found)) Verified then Refused WrongState else
  Done (set_life s v (with_cntvoff (snd found) offset), Nothing).

(* A vCPU starts to run. A protected one starts where its manifest or the VM itself says, and nowhere else. *)
Definition activate s v c : Outcome :=
  check c <? 16 else NoSuchObject in
  let! found := find s v [Verified] in
  let l := snd found in
  let! place := find_vcpu l c in
  if active place then Refused WrongState else
  let go how := Done (set_life s v (with_vcpus l (set (vcpus l) c (mkVcpu (mailbox place) true (power place)))), Starts how) in
  match power place with
  | On => go Resume
  | Pending pc x0 => go (Psci pc x0)
  | Never =>
    if negb (is_protected (fst found)) then go Mailbox else
    if c =? 0 then go (FromManifest (fst (entry l)) (snd (entry l))) else Refused WrongState
  | Off => Refused WrongState
  end.

(* A change of one vCPU, in any state of the VM. *)
Definition change_vcpu s v c (change : Vcpu -> Vcpu) : Outcome :=
  let! found := find s v all_states in
  let l := snd found in
  let! place := find_vcpu l c in
  Done (set_life s v (with_vcpus l (set (vcpus l) c (change place))), Nothing).

Definition started s v c : Outcome := change_vcpu s v c (fun x => mkVcpu (mailbox x) (active x) On).
Definition leave s v c : Outcome := change_vcpu s v c (fun x => mkVcpu (mailbox x) false (power x)).
Definition cpu_off s v c : Outcome := change_vcpu s v c (fun x => mkVcpu (mailbox x) (active x) Off).

Definition cpu_on s v target pc x0 : Outcome :=
  let answer n := Done (s, PsciResult n) in
  match find s v [Verified] with
  | Refused _ => answer (-3)%Z
  | Done (_, l) =>
    match get (vcpus l) target with
    | None => answer (-2)%Z
    | Some place =>
      match power place with
      | Pending _ _ => answer (-5)%Z
      | On => answer (-4)%Z
      | Never | Off =>
        if active place then answer (-4)%Z else
        Done (set_life s v (with_vcpus l (set (vcpus l) target (mkVcpu (mailbox place) false (Pending pc x0)))),
              PsciResult 0%Z)
      end
    end
  end.

Definition affinity_info s v target : Outcome :=
  let answer n := Done (s, PsciResult n) in
  match find s v all_states with
  | Refused _ => answer (-3)%Z
  | Done (_, l) =>
    match get (vcpus l) target with
    | None => answer (-2)%Z
    | Some place =>
      if active place then answer 0%Z else
      match power place with On => answer 0%Z | Pending _ _ => answer 2%Z | Never | Off => answer 1%Z end
    end
  end.

Definition power_off_vm s v : Outcome :=
  let! found := find s v all_states in
  Done (set_life s v (with_state (snd found) PowerOff), Nothing).

(* Its memory goes back: never while a vCPU runs, never while it is on. *)
Definition reclaim_vm s v : Outcome :=
  let! found := find s v [PowerOff] in
  if is_running (snd found) then Refused E_Busy else
  Done (with_memory s (clear_vm_range (memory s) v), Nothing).

Definition destroy_vm s v : Outcome :=
  let! found := find s v [PowerOff] in
  if is_running (snd found) || has_ram (fst found) then Refused E_Busy else
  let! s' := in_memory s (free_vm_table (clear_vm_range (memory s) v) v) in
  let m := fold_left (fun m e => let_go m (mailbox (snd e))) (entries (vcpus (snd found))) (memory s') in
  Done (mkLives m (remove (lives s) v) (gicv s) (registers s), Nothing).

Definition transition (s : Lives) (call : Call) : Outcome :=
  match call with
  | RegisterVm protected bits root => register_vm s protected bits root
  | RegisterVcpu v c p => register_vcpu s v c p
  | DonatePool v p n => donate_pool s v p n
  | SetBootInfo v gfn size => set_boot_info s v gfn size
  | RemapImagePage v image p => remap_image_page s v image p
  | VerifyVm v manifest => verify_vm s v manifest
  | MapMemory v gfn p n => map_memory s v gfn p n
  | UnmapMemory v gfn n => unmap_memory s v gfn n
  | MapIo v gfn p n => map_io s v gfn p n
  | SetCntvoff v offset => set_cntvoff s v offset
  | Activate v c => activate s v c
  | PowerOffVm v => power_off_vm s v
  | ReclaimVm v => reclaim_vm s v
  | DestroyVm v => destroy_vm s v
  | Started v c => started s v c
  | Leave v c => leave s v c
  | CpuOn v target pc x0 => cpu_on s v target pc x0
  | CpuOff v c => cpu_off s v c
  | AffinityInfo v target => affinity_info s v target
  end.

(* What is refused changes nothing. *)
Definition step (s : Lives) (call : Call) : Lives * Result CallError Answer :=
  match transition s call with
  | Done (s', answer) => (s', Done answer)
  | Refused why => (s, Refused why)
  end.
